# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Augmentation that is a function of the sample, the epoch and a seed."""

import json
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from transmamba_mm.checks import check_int
from transmamba_mm.contract import EpochDependent
from transmamba_mm.registry import DATASETS


@DATASETS.register_module()
class SeededAugment(EpochDependent):
    """Gives every sample ``num_views`` augmentations, always the same ones.

    Epoch e shows view ``e % num_views`` of all samples. What ``random``,
    NumPy and PyTorch draw in the pipeline comes from (seed, sample, view)
    alone, whatever the process, the worker and the batch, so that a teacher
    may be run once per view; see
    :class:`~transmamba_mm.engine.TeacherCacheHook`. The meta data of a sample
    says which it is: ``sample_idx``, ``augment_view``, and ``image_crc`` of
    the packed image.

    It is the outermost dataset of ``train_dataloader``, and
    :class:`~transmamba_mm.engine.EpochSeedHook` tells it the epoch.

    Args:
        dataset (dict): Config of a dataset whose pipeline ends in
            ``PackInputs``.
        num_views (int): Views of each sample, at least 1. Defaults to 1.
        seed (int): Seed of the augmentation, independent of the run's.
            Defaults to 0.

    Raises:
        ValueError: If ``num_views`` is below 1 or ``seed`` below 0.
    """

    def __init__(
        self, dataset: dict, num_views: int = 1, seed: int = 0
    ) -> None:
        self.num_views = check_int('num_views', num_views)
        self.seed = check_int('seed', seed, minimum=0)
        config = dict(dataset=dataset, seed=seed)
        self._description = json.dumps(config, sort_keys=True, default=str)
        self.dataset = DATASETS.build(dataset)
        # Shared with the workers of the dataloader.
        self._epoch = torch.tensor(-1).share_memory_()

    @property
    def metainfo(self) -> dict:
        """dict: Of the dataset."""
        return self.dataset.metainfo

    @property
    def description(self) -> str:
        """str: What the views depend on."""
        return self._description

    def set_epoch(self, epoch: int) -> None:
        """Chooses the view that all samples show."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch = int(self._epoch)
        if epoch < 0:
            raise RuntimeError(
                'transmamba.SeededAugment is not told the epoch: let it be '
                'the outermost dataset of train_dataloader, train by epochs, '
                'and keep epoch_seed=dict(type='
                "'transmamba.EpochSeedHook') in default_hooks"
            )
        index, view = index % len(self), epoch % self.num_views
        with seeded(self.seed, index, view):
            data = self.dataset[index]
        image = data['inputs'].contiguous().numpy()
        data['data_samples'].set_metainfo(
            dict(
                sample_idx=index,
                augment_view=view,
                image_crc=zlib.crc32(image),
            )
        )
        return data


def random_states() -> tuple:
    """States of ``random``, NumPy and PyTorch (CPU) in this process."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def restore_random(states: tuple) -> None:
    """Goes on from such states."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Draws from these numbers, and goes on as before thereafter."""
    states = random_states()
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # Not `torch.manual_seed`, which seeds the GPUs as well.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        restore_random(states)
