# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Let a run remove its own checkpoints only.

Cures:      ``CheckpointHook`` removes the previous best checkpoint by the
            path that the checkpoint it resumed from names, folders included.
            A file from elsewhere may name anything, and in a copy of a
            folder the path is that of the original.
Versions:   mmengine <= 0.10.7.
Delete:     when mmengine stores the name of the best checkpoint instead.
"""

from __future__ import annotations

import os.path as osp
from functools import wraps
from typing import Any, Optional

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

__all__ = ['keep_to_own_checkpoints']


def keep_to_own_checkpoints() -> str:
    """Make the hook forget, at the start, what is not of its folder.

    Returns:
        str: What was done.
    """
    theirs = CheckpointHook.before_train
    if hasattr(theirs, '__wrapped__'):
        return 'done before'

    @wraps(theirs)
    def before_train(self: CheckpointHook, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        kept = info.get('keep_ckpt_ids')
        if kept is not None:
            # They are put into file names.
            kept = kept if isinstance(kept, list) else []
            info['keep_ckpt_ids'] = [step for step in kept if _is_step(step)]
        theirs(self, runner)
        if not self.save_best:
            return
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = _own(self, self.best_ckpt_path)
        else:
            for key, path in self.best_ckpt_path_dict.items():
                self.best_ckpt_path_dict[key] = _own(self, path)

    CheckpointHook.before_train = before_train
    return 'removes checkpoints of its own folder only'


def _is_step(step: Any) -> bool:
    return type(step) is int and step >= 0


def _own(hook: CheckpointHook, path: Any) -> Optional[str]:
    """The best checkpoint of that name in the folder of the hook, if any."""
    name = osp.basename(path) if isinstance(path, str) else ''
    own = hook.file_backend.join_path(hook.out_dir, name)
    known = name.startswith('best_') and hook.file_backend.exists(own)
    return own if known else None
