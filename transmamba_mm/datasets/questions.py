# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Questions about images, as benchmarks ask them."""

import os.path as osp
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from transmamba_mm.checks import check_bool

from .rows import existing, field, usable_samples
from .skipping import SkipsUnreadable


class QuestionDataset(SkipsUnreadable):
    """Questions, each about one image.

    A sample has ``question``, ``question_id``, ``img_path`` and
    ``gt_answer``, a text, or a list with that of each person who was asked.
    The question is as in the file: ``transmamba.AskQuestion`` makes the
    prompt of it. Subclasses say what a file looks like by ``rows`` and
    ``sample``. (mmpretrain's data sets of the same benchmarks end at the first
    row that is broken without its name, and leave out of TextVQA and VizWiz
    what their accuracy needs.)

    Args:
        ann_file (str): The file with the questions.
        data_prefix (dict): ``dict(img=FOLDER)``. Defaults to
            ``dict(img='')``, ``data_root`` itself.
        answers (bool): Whether there are answers; those of a test that a
            server judges are not. Defaults to True.
        on_error (str): What becomes of rows that are broken, have no answer
            or whose image is missing. ``'error'``: they are named when the
            dataset is built. ``'skip'``: they are reported and left out. For
            images that cannot be decoded see
            :class:`~transmamba_mm.datasets.skipping.SkipsUnreadable`.
            Defaults to ``'error'``.
        **kwargs: Further arguments of MMEngine's ``BaseDataset``.

    Raises:
        ValueError: If a file is not what it should be, no row is left, or
            with ``'error'`` one cannot be used.
    """

    def __init__(
        self,
        ann_file: str = '',
        data_prefix: Optional[dict] = None,
        answers: bool = True,
        on_error: str = 'error',
        **kwargs: Any,
    ) -> None:
        self.answers = check_bool('answers', answers)
        super().__init__(
            ann_file=ann_file,
            data_prefix=dict(data_prefix or dict(img='')),
            on_error=on_error,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Returns one dict per question."""
        rows = (
            (_name(number, row), row)
            for number, row in enumerate(self.rows(), 1)
        )
        source = self.ann_file or self.data_prefix['img']
        return usable_samples(rows, self.sample, source, self.on_error)

    @abstractmethod
    def rows(self) -> Iterable[Any]:
        """Rows of the file, not checked."""

    @abstractmethod
    def sample(self, row: Any) -> dict:
        """The sample of a row; ValueError with the reason if it has none."""

    def image(self, name: str) -> str:
        """The path of an image; ValueError if it is missing."""
        return existing(osp.join(self.data_prefix['img'], name))

    def answered(self, row: Mapping, name: str = 'answers') -> dict:
        """``gt_answer`` of a row with a list of answers.

        Args:
            row (Mapping): The row.
            name (str): Of the list, of texts or of objects with an
                ``answer``. Defaults to ``'answers'``.

        Returns:
            dict: Empty where there are no answers.

        Raises:
            ValueError: If there should be, but are none.
        """
        if not self.answers:
            return {}
        found = [
            each if isinstance(each, str) else field(each, 'answer')
            for each in field(row, name, list)
        ]
        if not found:
            raise ValueError('there is no answer')
        return dict(gt_answer=found)


def _name(number: int, row: Any) -> str:
    for key in ('question_id', 'image'):
        if isinstance(row, dict) and key in row:
            return f'row {number} ({key} {row[key]!r})'
    return f'row {number}'
