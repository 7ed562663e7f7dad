# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Images without labels beside images with labels."""

from typing import Any

from mmengine.logging import print_log

from transmamba_mm.checks import check_int, check_number
from transmamba_mm.contract.answers import IGNORED
from transmamba_mm.registry import DATASETS

from .fraction import drawn


@DATASETS.register_module()
class PartlyLabelledDataset:
    """Hides the labels of all but a seeded, class-balanced share of a dataset.

    Distillation losses see all images, the task loss only those with labels;
    it is still the mean over the batch, so that it weighs less than where all
    have one. The head's loss must be ``CrossEntropyLoss``, without
    ``use_soft`` and ``use_sigmoid``, and nothing may mix images:
    :class:`~transmamba_mm.engine.PreCheckHook` refuses the rest.

    Args:
        dataset (dict): Config of a dataset whose pipeline ends in
            ``PackInputs``.
        labelled (float): Share of the images with labels, in (0, 1].
        seed (int): Seed of the choice, independent of the run's. Defaults
            to 0.

    Raises:
        ValueError: If ``labelled`` is out of range, or the dataset has no
            length.
    """

    def __init__(self, dataset: dict, labelled: float, seed: int = 0) -> None:
        if not 0 < check_number('labelled', labelled) <= 1:
            raise ValueError(f'labelled must lie in (0, 1], got {labelled}')
        check_int('seed', seed, minimum=0)
        self.dataset = DATASETS.build(dataset)
        self._labelled = drawn(self.dataset, labelled, seed)
        print_log(
            f'{self._labelled.sum()} of {len(self)} samples have labels '
            f'({labelled=:g}, {seed=})',
            logger='current',
        )

    @property
    def metainfo(self) -> dict:
        """dict: Of the dataset."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Does nothing: all has been read to draw from it."""

    def __len__(self) -> int:
        return len(self._labelled)

    def __getitem__(self, index: int) -> dict[str, Any]:
        data = self.dataset[index]
        if not self._labelled[index]:
            data['data_samples'].set_gt_label(IGNORED)
        return data
