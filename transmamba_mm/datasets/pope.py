# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""POPE (Li et al., arXiv 2305.10355): is there such a thing in the image?"""

from collections.abc import Iterator, Sequence
from typing import Any

from transmamba_mm.registry import DATASETS

from .questions import QuestionDataset
from .rows import field, read_lines


@DATASETS.register_module()
class POPEDataset(QuestionDataset):
    """Questions of POPE, whose answers are yes and no.

    Reads ``coco_pope_random.json`` and so on, of which each line is a
    ``{question_id, image, text, label}``. Samples also have their
    ``category``.

    Args:
        ann_file (str): The files, with ``{category}`` in their name.
        categories (Sequence[str]): Defaults to all three.
        **kwargs: See
            :class:`~transmamba_mm.datasets.questions.QuestionDataset`.
    """

    def __init__(
        self,
        ann_file: str = 'coco_pope_{category}.json',
        categories: Sequence[str] = ('adversarial', 'popular', 'random'),
        **kwargs: Any,
    ) -> None:
        self.categories = tuple(categories)
        super().__init__(ann_file, **kwargs)

    def rows(self) -> Iterator:
        """See the base class."""
        for category in self.categories:
            for row in read_lines(self._file(category)):
                known = isinstance(row, dict)
                yield dict(row, category=category) if known else row

    def _file(self, category: str) -> str:
        return self.ann_file.replace('{category}', category)

    def sample(self, row: Any) -> dict:
        """See the base class."""
        category = field(row, 'category')
        answer = field(row, 'label').lower().strip()
        if answer not in ('yes', 'no'):
            raise ValueError(f'label is neither yes nor no: {answer!r}')
        return dict(
            question=field(row, 'text').strip(),
            question_id=f'{category}/{field(row, "question_id", (str, int))}',
            img_path=self.image(field(row, 'image')),
            gt_answer=answer,
            category=category,
        )
