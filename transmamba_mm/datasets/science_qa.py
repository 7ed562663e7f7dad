# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""ScienceQA (Lu et al., arXiv 2209.09513), its questions with an image."""

import os.path as osp
from collections.abc import Iterator
from typing import Any

from transmamba_mm.registry import DATASETS

from .questions import QuestionDataset
from .rows import field, read_json, read_table

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'


@DATASETS.register_module()
class ScienceQADataset(QuestionDataset):
    """Questions of ScienceQA-IMG, with choices.

    Reads ``problems.json``, ``{id: {question, choices, answer, hint, image,
    ...}}``; images are ``<id>/<image>`` in their folder. Samples also have
    ``choices`` and ``hint``; ``gt_answer`` is a letter. Questions without an
    image are left out.

    Args:
        ann_file (str): File with the questions.
        split_file (str): File with the ids of each split. Defaults to
            ``'pid_splits.json'``.
        split (str): Defaults to ``'test'``.
        **kwargs: See
            :class:`~transmamba_mm.datasets.questions.QuestionDataset`.
    """

    def __init__(
        self,
        ann_file: str = 'problems.json',
        split_file: str = 'pid_splits.json',
        split: str = 'test',
        **kwargs: Any,
    ) -> None:
        self.split_file, self.split = split_file, split
        super().__init__(ann_file, **kwargs)

    def _join_prefix(self) -> None:
        super()._join_prefix()
        self.split_file = osp.join(self.data_root or '', self.split_file)

    def rows(self) -> Iterator:
        """See the base class."""
        problems = read_json(self.ann_file)
        for name in read_table(self.split_file, self.split):
            row = problems.get(name)
            if not isinstance(row, dict):
                yield dict(question_id=name)
            elif row.get('image'):
                yield dict(row, question_id=name)

    def sample(self, row: Any) -> dict:
        """See the base class."""
        name, choices = row['question_id'], field(row, 'choices', list)
        right = field(row, 'answer', int)
        if not 0 <= right < len(choices):
            raise ValueError(f'answer {right} is none of {choices!r}')
        return dict(
            question=field(row, 'question'),
            question_id=name,
            img_path=self.image(osp.join(name, field(row, 'image'))),
            gt_answer=LETTERS[right],
            choices=choices,
            hint=field(row, 'hint'),
        )
