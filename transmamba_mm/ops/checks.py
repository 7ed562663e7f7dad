# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checks of the arguments of the operators.

They run at every call.  Of the many arguments of a scan, :func:`_fits` only
compares, and why something does not fit is found out by :func:`_explain`.
"""

from typing import Optional

import torch
from torch import Tensor

DTYPES = frozenset(
    (torch.float32, torch.bfloat16, torch.float16, torch.float64)
)
NAMES = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
_REQUIRED = 5  # the first of NAMES


def check_inputs(tensors: tuple, K: Optional[int] = None) -> None:
    """Raise unless the tensors fit a scan.

    Args:
        tensors: those of ``NAMES``, None for those not given.
        K: number of directions of a ``multi_scan``; None for a
            ``selective_scan``, whose tensors have no axis of directions.

    Raises:
        TypeError: if one is not a real floating-point tensor.
        ValueError: if a shape or device does not fit.
    """
    if not _fits(tensors, K):
        _explain(tensors, K)


def _fits(tensors: tuple, K: Optional[int]) -> bool:
    u, delta, A, B, C, D, z, delta_bias = tensors
    for x in tensors:
        if x is None:
            continue
        if not isinstance(x, Tensor) or x.dtype not in DTYPES:
            return False
        if x.device != u.device:
            return False
    if u is None or delta is None or A is None or B is None or C is None:
        return False
    shape = u.shape
    if len(shape) == 4 and shape[1] == K:
        batch, _, channels, length = shape
    elif len(shape) == 3:
        batch, channels, length = shape
    else:
        return False
    tokens = (batch, channels, length)
    if not _is(delta.shape, tokens, 1, K):
        return False
    if z is not None and not _is(z.shape, tokens, 1, K):
        return False
    N = A.shape[-1] if A.dim() else 0
    if N < 1 or not _is(A.shape, (channels, N), 0, K):
        return False
    for x in (D, delta_bias):
        if x is not None and not _is(x.shape, (channels,), 0, K):
            return False
    return _fits_coefs(B.shape, batch, channels, length, N, K) and (
        _fits_coefs(C.shape, batch, channels, length, N, K)
    )


def _is(shape, want: tuple, axis: int, K: Optional[int]) -> bool:
    """Whether a shape is ``want``, or that with an axis of K directions."""
    if len(shape) == len(want):
        return shape == want
    return K is not None and shape == (*want[:axis], K, *want[axis:])


def _fits_coefs(shape, batch, channels, length, N, K) -> bool:
    if len(shape) == 3:
        return shape == (batch, N, length)
    if len(shape) == 2:
        return shape == (channels, N)
    if len(shape) != 4 or shape != (batch, shape[1], N, length):
        return False
    # Sizes are tensors while TorchScript traces.
    groups, rest = divmod(int(shape[1]), K or 1)
    return groups > 0 and rest == 0 and channels % groups == 0


def _explain(tensors: tuple, K: Optional[int]) -> None:
    """Raise the error that names the first argument which does not fit."""
    given = dict(zip(NAMES, tensors))
    check_tensors(
        **{
            name: x
            for i, (name, x) in enumerate(given.items())
            if x is not None or i < _REQUIRED
        }
    )
    u, A = given['u'], given['A']
    _require('u', u, ['(B, D, L)', '(B, K, D, L)'], [(None,) * 3], 1, K)
    batch, *_, channels, length = u.shape
    if A.dim() == 0 or A.shape[-1] < 1:
        raise ValueError(
            f'A: expected shape (D, N) = ({channels}, N) with N >= 1, '
            f'got {tuple(A.shape)}'
        )
    N = A.shape[-1]
    tokens = (batch, channels, length)
    if A.dim() > 1 and A.shape[-2] == length != channels:
        raise ValueError(
            f'A: expected shape (D, N) = ({channels}, {N}), got '
            f'{tuple(A.shape)}; if u, of shape {tuple(u.shape)}, is (B, L, D) '
            f'and not (B, D, L), pass u.mT and the like of delta, B, C and z'
        )
    for name, letters, want, axis in (
        ('A', ['(D, N)', '(K, D, N)'], (channels, N), 0),
        ('delta', ['(B, D, L)', '(B, K, D, L)'], tokens, 1),
        ('z', ['(B, D, L)', '(B, K, D, L)'], tokens, 1),
        ('D', ['(D,)', '(K, D)'], (channels,), 0),
        ('delta_bias', ['(D,)', '(K, D)'], (channels,), 0),
    ):
        if given[name] is not None:
            _require(name, given[name], letters, [want], axis, K)
    for name in ('B', 'C'):
        _explain_coefs(name, given[name].shape, tokens, N, K)
    raise AssertionError('the checks disagree')


def check_tensors(**given: Tensor) -> None:
    """Raise unless all are real floating-point tensors on one device.

    Args:
        **given: tensors by the names of the arguments.

    Raises:
        TypeError: if one is no tensor, or not of such a dtype.
        ValueError: if one is on another device than the first.
    """
    device = None
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(
                f'{name}: expected a tensor, got {type(x).__name__}'
            )
        if x.dtype not in DTYPES:
            refused = 'complex tensors are not supported; ' * x.is_complex()
            raise TypeError(
                f'{name}: {refused}expected a floating-point dtype (float32, '
                f'bfloat16, float16 or float64), got {x.dtype}'
            )
        device = device or x.device
        if x.device != device:
            raise ValueError(
                f'{name}: is on {x.device}, but {next(iter(given))} is on '
                f'{device}'
            )


def _require(name, x, letters, wants, axis, K) -> None:
    """Raise unless ``x`` has a wanted shape, None standing for any size."""
    if K is not None:
        wants = [*wants, (*wants[0][:axis], K, *wants[0][axis:])]
    for want in wants:
        sizes = zip(x.shape, want)
        if x.dim() == len(want) and all(b in (None, a) for a, b in sizes):
            return
    if None in wants[0]:
        expected = ' or '.join(letters[: len(wants)])
        note = '' if K is None else f' with K = {K}'
    else:
        pairs = zip(letters, wants)
        expected = ' or '.join(f'{a} = {b}' for a, b in pairs)
        note = ''
    raise ValueError(
        f'{name}: expected shape {expected}{note}, got {tuple(x.shape)}'
    )


def _explain_coefs(name, shape, tokens, N, K) -> None:
    batch, channels, length = tokens
    if _fits_coefs(shape, batch, channels, length, N, K):
        return
    axis = 'G' if K is None else 'K*G'
    if len(shape) == 4 and shape == (batch, shape[1], N, length):
        if shape[1] % (K or 1):
            raise ValueError(
                f'{name}: axis 1 of {tuple(shape)} runs over directions, '
                f'then groups; it must be a multiple of K = {K}'
            )
        raise ValueError(
            f'{name}: its {shape[1] // (K or 1)} groups (axis 1 of '
            f'{tuple(shape)}) must divide D = {channels}'
        )
    raise ValueError(
        f'{name}: expected shape (D, N) = {(channels, N)}, '
        f'(B, N, L) = {(batch, N, length)} or (B, {axis}, N, L) = '
        f'({batch}, {axis}, {N}, {length}), got {tuple(shape)}'
    )
