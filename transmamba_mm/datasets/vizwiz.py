# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VizWiz-VQA (Gurari et al., arXiv 1802.08218)."""

from typing import Any

from transmamba_mm.registry import DATASETS

from .questions import QuestionDataset
from .rows import field, read_rows


@DATASETS.register_module()
class VizWizDataset(QuestionDataset):
    """Questions of blind people, with ten answers each.

    Reads ``val.json``, a list of ``{image, question, answers}`` in which an
    answer is an ``{answer, ...}``. All questions and answers count,
    ``unanswerable`` among them; the name of the image is the ``question_id``,
    as the server wants it. Arguments: see
    :class:`~transmamba_mm.datasets.questions.QuestionDataset`.
    """

    def rows(self) -> list:
        """See the base class."""
        return read_rows(self.ann_file)

    def sample(self, row: Any) -> dict:
        """See the base class."""
        image = field(row, 'image')
        return dict(
            question=field(row, 'question'),
            question_id=image,
            img_path=self.image(image),
            **self.answered(row),
        )
