# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints that a kill at any moment and a NaN at any time leave whole."""

import os
import os.path as osp
import re
from inspect import signature
from pathlib import Path
from typing import Any, Optional, Union

from mmengine.dist import is_main_process
from mmengine.fileio import (
    BaseStorageBackend,
    LocalBackend,
    register_backend,
)
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from transmamba_mm.checks import check_bool, check_int
from transmamba_mm.registry import HOOKS

from .finite import NonFiniteError, non_finite

# What a checkpoint is resumed from. Log values beside it may be infinite.
_STATES = ('state_dict', 'ema_state_dict', 'optimizer')
# Of the message hub: what an interrupted run was about to remove, and the
# step whose evaluation this state has seen.
_DOOMED = 'doomed_ckpts'
_EVALUATED = 'evaluated_step'


_PART = '.part'


def _replace_file(path: Union[str, Path], content: bytes) -> None:
    """Writes a file so that a kill leaves the old or the new content."""
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    # A fixed name: what a kill leaves behind is overwritten the next time.
    temporary = f'{path}{_PART}'
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


class _RemovedLater:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: BaseStorageBackend) -> None:
        self._backend = backend
        self.doomed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Notes a file or folder."""
        self.doomed.append(path)

    rmtree = remove

    def purge(self, kept: set[Optional[str]]) -> None:
        """Removes what was noted, if it is there, but for what is kept."""
        doomed, self.doomed = self.doomed, []
        for path in doomed:
            if path in kept:
                continue
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):
                self._backend.rmtree(path)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, safe against a kill at any moment.

    Checkpoints and the ``last_checkpoint`` file are replaced atomically, and
    an old checkpoint is removed only when the new one is complete. One that
    is not finite is not written. What a kill leaves behind, an evaluation
    that was due or a file that was to go, is made up for when the run is
    resumed. Takes the same arguments; on a remote ``out_dir`` it leaves
    writing to the backend.

    Raises:
        ValueError: If a number of epochs or files is none, or there is no
            such option.
        NonFiniteError: Instead of saving NaN or infinite weights.
    """

    # That ``save_best`` of a retrieval metric needs no ``rule``.
    _default_greater_keys = [
        *CheckpointHook._default_greater_keys,
        'R@',
        'f1',
        'perception',
        'cognition',
    ]
    _default_less_keys = [*CheckpointHook._default_less_keys, 'MdR', 'MnR']

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for name in ('interval', 'max_keep_ckpts', 'save_begin'):
            check_int(name, getattr(self, name), minimum=-1)
        check_bool('by_epoch', self.by_epoch)
        # What it does not know itself, it hands on when it saves.
        known = signature(Runner.save_checkpoint).parameters
        if unknown := self.args.keys() - known:
            raise ValueError(f'there is no option {min(unknown)!r}')
        remote = '://' in str(self.out_dir or '')
        if self.backend_args is None and not remote:
            self.backend_args = dict(backend='transmamba_atomic')
        self._infinite_before: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Finds its folder, and makes up for what a kill left undone."""
        super().before_train(runner)
        self.file_backend = _RemovedLater(self.file_backend)
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        # Such as masks of minus infinity.
        self._infinite_before = set(non_finite(dict(model.named_buffers())))
        if is_main_process():
            self._sweep(runner)
        self._evaluate_if_due(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Saves the best checkpoint."""
        runner.message_hub.update_info(_EVALUATED, _step(runner))
        super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuses what cannot be resumed from."""
        content = {key: checkpoint.get(key, {}) for key in _STATES}
        for name in non_finite(content):
            _, _, tensor = name.partition('.')
            if tensor.removeprefix('module.') not in self._infinite_before:
                step = checkpoint['meta']['iter']
                raise NonFiniteError(
                    f'{name} is not finite after iteration {step}: '
                    f'nothing is saved, and the last checkpoint is kept'
                )

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict
    ) -> None:
        # Without a limit there is no such list.
        kept = self.keep_ckpt_ids if self.max_keep_ckpts > 0 else None
        if kept is not None and (not kept or kept[-1] != step):
            if len(kept) == self.max_keep_ckpts:
                self.file_backend.remove(self._path(kept.popleft()))
            kept.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        doomed = [osp.basename(path) for path in self.file_backend.doomed]
        runner.message_hub.update_info(_DOOMED, doomed)
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            pointer = osp.join(runner.work_dir, 'last_checkpoint')
            _replace_file(pointer, self.last_ckpt.encode())
        self._purge()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        # MMEngine's own removes the previous best checkpoint first.
        super()._save_best_checkpoint(runner, metrics)
        self._purge()

    def _path(self, step: int) -> str:
        name = self.filename_tmpl.format(step)
        return self.file_backend.join_path(self.out_dir, name)

    def _purge(self) -> None:
        best = set(getattr(self, 'best_ckpt_path_dict', {}).values())
        best.add(getattr(self, 'best_ckpt_path', None))
        if is_main_process():
            self.file_backend.purge(best)

    def _sweep(self, runner: Runner) -> None:
        """Removes what a killed run was about to remove, or half wrote."""
        doomed = runner.message_hub.get_info(_DOOMED, [])
        # A checkpoint from elsewhere may hold anything there.
        for name in doomed if isinstance(doomed, list) else []:
            if isinstance(name, str) and self._is_own(name):
                path = self.file_backend.join_path(self.out_dir, name)
                self.file_backend.remove(path)
        self._purge()
        folders = {runner.work_dir, self.out_dir}
        for folder in filter(osp.isdir, folders):
            for name in os.listdir(folder):
                whole = name.removesuffix(_PART)
                own = whole == 'last_checkpoint' or self._is_own(whole)
                if whole != name and own:
                    os.unlink(osp.join(folder, name))

    def _is_own(self, name: str) -> bool:
        """Whether this hook gives such names to checkpoints."""
        template = re.escape(self.filename_tmpl)
        pattern = r'(best_.+_)?' + re.sub(r'\\{.*\\}', r'\\d+', template)
        return bool(re.fullmatch(pattern, name)) and name == osp.basename(name)

    def _evaluate_if_due(self, runner: Runner) -> None:
        """Runs the evaluation that a resumed checkpoint has not seen."""
        step, loop = _step(runner), runner.train_loop
        if not step or runner.val_loop is None:
            return
        loop._decide_current_val_interval()
        last = loop.max_epochs if _by_epoch(runner) else loop.max_iters
        due = step % loop.val_interval == 0 or step == last
        seen = runner.message_hub.get_info(_EVALUATED, None)
        if step < loop.val_begin or not due or seen == step:
            return
        runner.logger.info('The checkpoint is evaluated, as it was not yet')
        if self.file_backend.exists(self._path(step)):
            # To be written again, if it is the best one.
            self.last_ckpt = self._path(step)
        runner.val_loop.run()


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def _step(runner: Runner) -> int:
    """The epochs that are done, or the iterations."""
    return runner.epoch if _by_epoch(runner) else runner.iter
