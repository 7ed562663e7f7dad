# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Let lazy configs name mmrazor's recorders and deliveries by their classes.

Cures:      mmrazor appends 'Recorder' or 'Delivery' to what ``type`` says, so
            it takes a string without that and stops at a class.
Versions:   mmrazor 1.0.0 (the last release).
Delete:     when its managers build a class as it is.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

__all__ = ['accept_classes']


def accept_classes() -> str:
    """Make the managers build classes as they are.

    Returns:
        str: What was done.
    """
    # Not before mmrazor has been made importable.
    from mmrazor.models.task_modules import (
        DistillDeliveryManager,
        RecorderManager,
    )

    if hasattr(RecorderManager.__init__, '__wrapped__'):
        return 'done before'
    for manager, parts in (
        (RecorderManager, '_recorders'),
        (DistillDeliveryManager, '_deliveries'),
    ):
        manager.__init__ = _building_classes(manager.__init__, parts)
    return 'recorders and deliveries may be classes'


def _building_classes(theirs: Any, parts: str) -> Any:
    from mmrazor.registry import TASK_UTILS

    @wraps(theirs)
    def __init__(self: Any, configs: Any = None) -> None:
        configs = dict((configs or {}).items())
        named = {
            name: config
            for name, config in configs.items()
            if not isinstance(config.get('type'), type)
        }
        theirs(self, named)
        found = getattr(self, parts)
        for name, config in configs.items():
            # In the order of the config, as they are entered.
            found[name] = (
                found.pop(name) if name in named else TASK_UTILS.build(config)
            )

    return __init__
