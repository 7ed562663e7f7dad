# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Let any default hook be dropped by ``default_hooks=dict(name=None)``.

Cures:      MMEngine drops one of its own six default hooks in this way, and
            stops without a word at the ``None`` of any other, such as
            mmpretrain's ``visualization`` and those of our configs.
Versions:   mmengine <= 0.10.7.
Delete:     when mmengine passes over the ``None`` of every hook.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from mmengine.runner import FlexibleRunner, Runner

__all__ = ['drop_any_default_hook']

# Those that are there unless something else is said.
_MMENGINES = (
    'runtime_info',
    'timer',
    'sampler_seed',
    'logger',
    'param_scheduler',
    'checkpoint',
)


def drop_any_default_hook() -> str:
    """Keep the ``None`` of hooks that MMEngine does not know from it.

    Returns:
        str: What was done.
    """
    for kind in (Runner, FlexibleRunner):
        theirs = kind.register_default_hooks
        if hasattr(theirs, '__wrapped__'):
            return 'done before'
        kind.register_default_hooks = _dropping(theirs)
    return 'any default hook may be None'


def _dropping(theirs: Any) -> Any:
    @wraps(theirs)
    def register_default_hooks(self: Any, hooks: Any = None) -> None:
        hooks = {
            name: hook
            for name, hook in (hooks or {}).items()
            if hook is not None or name in _MMENGINES
        }
        theirs(self, hooks)

    return register_default_hooks
