# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Import MMEngine without all of transformers.

Cures:      where transformers is installed, ``import mmengine.optim`` imports
            it, as long again as all else, to register one optimizer.
Versions:   mmengine <= 0.10.7.
Delete:     when mmengine registers ``Adafactor`` without importing it.

How: MMEngine takes transformers for absent while it is imported, and gets a
function of the optimizer's name that imports it when it is built. This module
acts when it is imported, as the other cures import MMEngine: it comes first.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from .environment import installed_version

__all__ = ['spare_transformers']


@functools.cache
def spare_transformers() -> str:
    """Import ``mmengine.optim`` without transformers.

    Returns:
        str: What was found and done.
    """
    if installed_version('transformers') is None:
        return 'not needed (transformers not installed)'
    if {'transformers', 'mmengine.optim'} & sys.modules.keys():
        return 'too late: transformers or mmengine.optim was imported before'
    sys.modules['transformers'] = None
    try:
        importlib.import_module('mmengine.optim')
    finally:
        del sys.modules['transformers']
    from mmengine.registry import OPTIMIZERS

    OPTIMIZERS.register_module(name='Adafactor', module=_adafactor)
    return 'Adafactor imports transformers when it is built'


def _adafactor(*args: Any, **kwargs: Any) -> Any:
    """The optimizer of transformers."""
    from transformers import Adafactor

    return Adafactor(*args, **kwargs)


spare_transformers()
