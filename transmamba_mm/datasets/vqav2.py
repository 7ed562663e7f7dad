# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VQAv2 (Goyal et al., arXiv 1612.00837)."""

import os
import re
from collections.abc import Iterator
from typing import Any

from transmamba_mm.registry import DATASETS

from .questions import QuestionDataset
from .rows import existing, field, read_table


@DATASETS.register_module()
class VQAv2Dataset(QuestionDataset):
    """Questions of VQAv2, with ten answers each, or without for the server.

    Args:
        ann_file (str): File with the questions, ``{questions: [{question_id,
            image_id, question}, ...]}``.
        answer_file (str): File with the answers, ``{annotations:
            [{question_id, answers: [{answer}, ...]}, ...]}``. Defaults to
            ``''``: there are none.
        data_prefix (dict): ``dict(img=FOLDER)`` of COCO's images, in whose
            names the id has twelve digits.
        **kwargs: See
            :class:`~transmamba_mm.datasets.questions.QuestionDataset`.
    """

    def __init__(self, ann_file: str, answer_file: str = '', **kwargs: Any):
        self.answer_file = answer_file
        super().__init__(ann_file, answers=bool(answer_file), **kwargs)

    def _join_prefix(self) -> None:
        super()._join_prefix()
        if self.answer_file:
            self.answer_file = os.path.join(
                self.data_root or '', self.answer_file
            )

    def rows(self) -> Iterator:
        """See the base class."""
        folder, said = self.data_prefix['img'], {}
        images = {
            int(match[1]): os.path.join(folder, match[0])
            for name in os.listdir(folder)
            if (match := re.fullmatch(r'.*?(\d{12})\.\w+', name))
        }
        if self.answers:
            for row in read_table(self.answer_file, 'annotations'):
                said[field(row, 'question_id', int)] = row.get('answers')
        for row in read_table(self.ann_file, 'questions'):
            if isinstance(row, dict):
                number = row.get('image_id')
                row = dict(
                    row,
                    answers=said.get(row.get('question_id'), []),
                    path=images.get(number, f'{folder}/...{number}.jpg'),
                )
            yield row

    def sample(self, row: Any) -> dict:
        """See the base class."""
        return dict(
            question=field(row, 'question'),
            question_id=field(row, 'question_id', int),
            img_path=existing(field(row, 'path')),
            **self.answered(row),
        )
