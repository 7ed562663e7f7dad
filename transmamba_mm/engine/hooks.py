# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hooks that make runs resume to the same result, and start from any file."""

import os
import os.path as osp
import random
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.fileio import (
    BaseStorageBackend,
    LocalBackend,
    register_backend,
)
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from transmamba_mm.registry import FUNCTIONS, HOOKS


def _replace_file(path: Union[str, Path], content: bytes) -> None:
    """Writes a file so that a kill leaves the old or the new content."""
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    # A fixed name: what a kill leaves behind is overwritten the next time.
    temporary = f'{path}.part'
    try:
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if osp.exists(temporary):
            os.unlink(temporary)
        raise


@register_backend('transmamba_atomic')
class AtomicLocalBackend(LocalBackend):
    """A local file backend that never leaves half a file behind."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Writes ``obj`` to ``filepath``, all or nothing."""
        _replace_file(filepath, obj)


class _KeepForNow:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: BaseStorageBackend) -> None:
        self._backend = backend
        self.doomed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.doomed.append(path)

    rmtree = remove


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, safe against a kill at any moment.

    Checkpoints and the ``last_checkpoint`` file are replaced atomically, and
    an old checkpoint is removed only when the new one is complete. Takes the
    same arguments; on a remote ``out_dir`` it leaves writing to the backend.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        remote = '://' in str(self.out_dir or '')
        if self.backend_args is None and not remote:
            self.backend_args = dict(backend='transmamba_atomic')

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict
    ) -> None:
        doomed = None
        # Without a limit there is no such list.
        kept = self.keep_ckpt_ids if self.max_keep_ckpts > 0 else None
        if kept is not None and (not kept or kept[-1] != step):
            if len(kept) == self.max_keep_ckpts:
                doomed = kept.popleft()
            kept.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        pointer = osp.join(runner.work_dir, 'last_checkpoint')
        _replace_file(pointer, self.last_ckpt.encode())
        if doomed is not None:
            name = self.filename_tmpl.format(doomed)
            self._remove(self.file_backend.join_path(self.out_dir, name))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        # MMEngine's own removes the previous best checkpoint first.
        backend = self.file_backend
        self.file_backend = _KeepForNow(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
            doomed = self.file_backend.doomed
        finally:
            self.file_backend = backend
        best = set(getattr(self, 'best_ckpt_path_dict', {}).values())
        best.add(getattr(self, 'best_ckpt_path', None))
        for path in doomed:
            if path not in best:
                self._remove(path)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)


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
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds an epoch."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._seed(runner, runner.epoch)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Seeds an iteration of an iteration-based run."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._seed(runner, runner.iter)

    @staticmethod
    def _seed(runner: Runner, step: int) -> None:
        sequence = np.random.SeedSequence([runner.seed, step, get_rank()])
        _seed_all(int(sequence.generate_state(1)[0]))


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
