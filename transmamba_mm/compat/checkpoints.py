# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Let MMEngine checkpoints be loaded with ``weights_only=True``.

Cures:      resuming from, or loading, any checkpoint that MMEngine's Runner
            wrote fails with ``UnpicklingError: Weights only load failed``.
            Since torch 2.6 ``torch.load`` is ``weights_only`` by default,
            and a Runner checkpoint also holds ``HistoryBuffer`` objects.
            The official checkpoints of the backbones hold, in turn, the
            arguments of their training: an ``argparse.Namespace`` (Vim,
            VideoMamba) or a ``CfgNode`` of yacs (VMamba).
Versions:   mmengine <= 0.10.7 with torch >= 2.6, numpy 1 and 2.
Delete:     when mmengine declares its own safe globals.

Safety: nothing becomes unsafe. The classes below only hold values, and the
one function that could reach further, ``getattr`` (pickle stores a method of
a class as a call of it), is replaced by a version that knows four methods of
``HistoryBuffer`` and refuses everything else.
"""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from .environment import version_tuple

__all__ = ['allow_mmengine_checkpoints']

_STATISTICS = ('min', 'max', 'mean', 'current')
_DTYPES = (
    *('f2', 'f4', 'f8', 'c8', 'c16', 'b1', 'U1', 'S1'),
    *('i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8'),
)


def allow_mmengine_checkpoints() -> str:
    """Declare safe what a Runner checkpoint holds beside tensors.

    Returns:
        str: What was done.
    """
    if version_tuple(torch.__version__) < (2, 6):
        # Not needed: torch.load does not restrict pickles by default, and
        # add_safe_globals cannot map names yet.
        return 'not needed (torch < 2.6)'
    from mmengine.logging import HistoryBuffer

    try:
        from numpy._core import multiarray
    except ImportError:  # numpy 1
        from numpy.core import multiarray

    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *{type(np.dtype(code)) for code in _DTYPES},
            # A file written with numpy 1 is read with numpy 2, and back.
            *(
                (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
                for core in ('core', '_core')
                for name in ('_reconstruct', 'scalar')
            ),
            (_restricted_getattr, 'builtins.getattr'),
            argparse.Namespace,
            # A dict, read as one whether yacs is installed or not.
            (OrderedDict, 'yacs.config.CfgNode'),
        ]
    )
    return 'load with weights_only=True'


def _restricted_getattr(owner: Any, name: str) -> Any:
    """Stand in for ``getattr`` while a checkpoint is unpickled.

    Args:
        owner (Any): Must be the class ``HistoryBuffer`` itself.
        name (str): One of its four statistics.

    Returns:
        Any: The method.

    Raises:
        pickle.UnpicklingError: If anything else is asked for.
    """
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in _STATISTICS:
        return HistoryBuffer.__dict__[name]
    raise pickle.UnpicklingError(
        f'a checkpoint may not ask for attribute {name!r} of {owner!r}'
    )
