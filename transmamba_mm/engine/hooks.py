# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hooks that make runs resume to the same result, and start from any file."""

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from transmamba_mm.datasets import SeededAugment
from transmamba_mm.registry import FUNCTIONS, HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Draws all randomness of an epoch from (seed, epoch, rank) alone.

    mmengine does not store random states, so a resumed run would continue
    with other dropout, drop path and augmentation. With this hook an epoch
    does not depend on what ran before it. Iteration-based runs are seeded
    every iteration instead. For dataloader workers use
    ``worker_init_fn=dict(type='transmamba.seed_worker')`` and
    ``persistent_workers=False``. An iteration-based run with random
    augmentation needs ``num_workers >= 1`` to resume to the same result:
    MMEngine draws its first batch before any hook can seed it.

    It also tells :class:`~transmamba_mm.datasets.SeededAugment` the epoch.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Tells the dataset its first epoch.

        The seeds of workers come from a generator of the dataloader's own in
        an iteration-based run, which reads the data anew wherever a pass over
        them ends.
        """
        self._choose_view(runner)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            seed = _combined(runner.seed, get_rank())
            generator = torch.Generator().manual_seed(seed)
            runner.train_dataloader.generator = generator

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds an epoch."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._seed(runner, runner.epoch)
            self._choose_view(runner)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Seeds an iteration of an iteration-based run."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._seed(runner, runner.iter)

    @staticmethod
    def _choose_view(runner: Runner) -> None:
        dataset = runner.train_dataloader.dataset
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and isinstance(dataset, SeededAugment):
            dataset.set_epoch(runner.epoch)

    @staticmethod
    def _seed(runner: Runner, step: int) -> None:
        _seed_all(_combined(runner.seed, step, get_rank()))


@HOOKS.register_module()
class BareFileHook(Hook):
    """Lets a run with an ``EMAHook`` start from any file by ``load_from``.

    MMEngine takes a file without ``state_dict`` as a state dict, which a
    released checkpoint may be, but ``EMAHook`` stops at it.
    """

    priority = 'VERY_HIGH'  # before the EMA, whose priority configs choose

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Puts the content where every hook looks for it."""
        if 'state_dict' not in checkpoint:
            checkpoint['state_dict'] = dict(checkpoint)


def _combined(*numbers: int) -> int:
    """A seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seeds a dataloader worker from the main process's torch seed.

    mmengine's default gives every epoch the same augmentation draws; PyTorch
    gives each worker a seed drawn from the main process's generator, which
    :class:`EpochSeedHook` sets per epoch.

    Args:
        worker_id (int): Unused; part of the dataloader's protocol.
    """
    _seed_all(torch.initial_seed() % 2**32)
