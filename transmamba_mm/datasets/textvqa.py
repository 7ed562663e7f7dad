# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TextVQA (Singh et al., arXiv 1904.08920)."""

from typing import Any

from transmamba_mm.registry import DATASETS

from .questions import QuestionDataset
from .rows import field, read_table


@DATASETS.register_module()
class TextVQADataset(QuestionDataset):
    """Questions of TextVQA, with ten answers each.

    Reads ``TextVQA_0.5.1_val.json``, ``{data: [{question, question_id,
    image_id, answers}, ...]}``. Arguments: see
    :class:`~transmamba_mm.datasets.questions.QuestionDataset`.
    """

    def rows(self) -> list:
        """See the base class."""
        return read_table(self.ann_file, 'data')

    def sample(self, row: Any) -> dict:
        """See the base class."""
        return dict(
            question=field(row, 'question'),
            question_id=field(row, 'question_id', (str, int)),
            img_path=self.image(f'{field(row, "image_id")}.jpg'),
            **self.answered(row),
        )
