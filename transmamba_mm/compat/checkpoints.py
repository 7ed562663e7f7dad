# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Read MMEngine's checkpoints as data, from wherever they come.

Cures:      (1) resuming from, or loading, any checkpoint that MMEngine's
            Runner wrote fails with ``UnpicklingError: Weights only load
            failed``. Since torch 2.6 ``torch.load`` is ``weights_only`` by
            default, and a Runner checkpoint also holds ``HistoryBuffer``
            objects. The official checkpoints of the backbones hold, in turn,
            the arguments of their training: an ``argparse.Namespace`` (Vim,
            VideoMamba) or a ``CfgNode`` of yacs (VMamba).
            (2) MMEngine's loader of URLs unpickles anything.
            (3) ``last_checkpoint`` is believed wherever it leads.
Versions:   mmengine <= 0.10.7 with torch >= 2.6, numpy 1 and 2.
Delete:     (1) when mmengine declares its own safe globals; (2) when all its
            loaders pass ``weights_only=True``; (3) when it stores a name.

Safety: an allowed class is called and filled with whatever a file says.
Neither numpy's arrays and dtypes nor ``HistoryBuffer`` are made for that: an
array of objects turns bytes of the file into addresses, and a history
changes its class. So stand-ins are called in their place, which take plain
numbers and strings only.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections import OrderedDict
from typing import Any

import mmengine.runner
import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from transmamba_mm.checkpoints import find_latest_checkpoint
from transmamba_mm.checkpoints.reader import load_from_data_only

from .environment import version_tuple

__all__ = ['allow_mmengine_checkpoints']

_STATISTICS = ('min', 'max', 'mean', 'current')


def allow_mmengine_checkpoints() -> str:
    """Declare safe what a Runner checkpoint holds beside tensors.

    Returns:
        str: What was done.
    """
    for prefix in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(
            prefix, load_from_data_only, force=True
        )
    for module in (
        mmengine.runner,
        mmengine.runner.checkpoint,
        mmengine.runner.runner,
        mmengine.runner._flexible_runner,
    ):
        module.find_latest_checkpoint = find_latest_checkpoint
    if version_tuple(torch.__version__) < (2, 6):
        # torch.load does not restrict pickles by default, and
        # add_safe_globals cannot map names yet.
        return 'run code that is in files (torch < 2.6)'
    torch.serialization.add_safe_globals(
        [
            (_History, f'{HistoryBuffer.__module__}.HistoryBuffer'),
            (_Array, 'numpy.ndarray'),
            (_Dtype, 'numpy.dtype'),
            # A file written with numpy 1 is read with numpy 2, and back.
            *(
                (stand_in, f'numpy.{core}.multiarray.{name}')
                for core in ('core', '_core')
                for stand_in, name in (
                    (_reconstruct, '_reconstruct'),
                    (_scalar, 'scalar'),
                )
            ),
            (_method_name, 'builtins.getattr'),
            (_no_bytes, 'builtins.bytes'),
            # With its name, or others that add and remove it remove ours.
            (argparse.Namespace, 'argparse.Namespace'),
            # A dict, read as one whether yacs is installed or not.
            (OrderedDict, 'yacs.config.CfgNode'),
        ]
    )
    return 'load with weights_only=True'


def _refuse(what: str) -> None:
    raise pickle.UnpicklingError(f'a checkpoint may not {what}')


class _Dtype:
    """Stands in for ``numpy.dtype``: numbers and strings of fixed size."""

    def __init__(self, code: Any, *flags: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(
            r'[biufcSU]\d{1,9}', code
        ):
            _refuse(f'hold numpy data of the type {str(code)[:40]!r}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, fields = state[:5]
        if (subdtype, names, fields) != (None, None, None):
            _refuse('hold numpy data with fields')
        if order not in ('<', '>', '|', '='):
            _refuse('name a byte order of its own')
        self.dtype = self.dtype.newbyteorder(order)

    def __reduce__(self) -> tuple:
        return self.dtype.__reduce__()


class _Array(np.ndarray):
    """Stands in for ``numpy.ndarray``, and is one; filled once."""

    def __new__(cls, *args: Any) -> None:
        _refuse('ask for memory that it does not fill')

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        # Filling it again would free what a tensor may look at.
        if self.nbytes or type(dtype) is not _Dtype:
            _refuse('rebuild an array in this way')
        if not all(type(side) is int and side >= 0 for side in shape):
            _refuse('hold an array of this shape')
        size = math.prod(shape) * dtype.dtype.itemsize
        if type(data) is not bytes or len(data) != size:
            _refuse('hold an array without its values')
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), data))

    def __reduce__(self) -> tuple:
        return np.asarray(self).__reduce__()


def _reconstruct(kind: Any, *args: Any) -> _Array:
    """Stands in for numpy's function that makes an array to be filled."""
    if kind is not _Array:
        _refuse(f'make an array of the type {kind!r}')
    return np.ndarray.__new__(_Array, (0,))


def _scalar(dtype: Any, data: Any) -> np.generic:
    """Stands in for numpy's function that makes a scalar."""
    if type(dtype) is not _Dtype or type(data) is not bytes:
        _refuse('make a scalar in this way')
    return np.ndarray((), dtype.dtype, data)[()]


class _History(HistoryBuffer):
    """Stands in for ``HistoryBuffer``, and becomes one when it is filled."""

    def __init__(self, *args: Any) -> None:
        _refuse('call HistoryBuffer')

    def __setstate__(self, state: Any) -> None:
        log, count = state['_log_history'], state['_count_history']
        numbers = [
            isinstance(x, np.ndarray) and x.dtype.kind in 'biuf'
            for x in (log, count)
        ]
        length = state['max_length']
        if not all(numbers) or type(length) is not int or length < 1:
            _refuse('hold a history that is not of numbers')
        if log.ndim != 1 or log.shape != count.shape:
            _refuse('hold a history of another shape')
        # Not its statistics: MMEngine would put them into the class.
        HistoryBuffer.__init__(self, log, count, length)
        self.__class__ = HistoryBuffer


def _no_bytes() -> bytes:
    """Stands in for ``bytes``, as a call of which an empty array stores."""
    return b''


def _method_name(owner: Any, name: Any) -> str:
    """Stands in for ``getattr``, as which pickle stores a method.

    A history brings its statistics along, which are methods of its class.

    Args:
        owner (Any): Must be the class ``HistoryBuffer``.
        name (Any): One of its four statistics.

    Returns:
        str: The name, which nobody uses.

    Raises:
        pickle.UnpicklingError: If anything else is asked for.
    """
    if owner is not _History or name not in _STATISTICS:
        _refuse(f'ask for the attribute {name!r} of {owner!r}')
    return name
