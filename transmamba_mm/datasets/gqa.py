# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""GQA (Hudson and Manning, arXiv 1902.09506)."""

from typing import Any

from transmamba_mm.registry import DATASETS

from .questions import QuestionDataset
from .rows import field, read_json


@DATASETS.register_module()
class GQADataset(QuestionDataset):
    """Questions of GQA, with one answer each.

    Reads the files of GQA, ``{id: {imageId, question, answer, ...}}`` such as
    ``testdev_balanced_questions.json``, and those that LAVIS made of them,
    lists of ``{image, question, answer, question_id}``. Arguments: see
    :class:`~transmamba_mm.datasets.questions.QuestionDataset`.
    """

    def rows(self) -> list:
        """See the base class."""
        content = read_json(self.ann_file)
        if isinstance(content, list):
            return content
        return [
            dict(row, question_id=name, image=f'{row.get("imageId")}.jpg')
            if isinstance(row, dict)
            else row
            for name, row in content.items()
        ]

    def sample(self, row: Any) -> dict:
        """See the base class."""
        found = dict(
            question=field(row, 'question'),
            question_id=field(row, 'question_id', (str, int)),
            img_path=self.image(field(row, 'image')),
        )
        if self.answers:
            found['gt_answer'] = field(row, 'answer')
        return found
