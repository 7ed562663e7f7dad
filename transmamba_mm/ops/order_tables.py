# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checked token orders and what is derived from them, computed once."""

from typing import Any

import torch
from torch import Tensor

from .caching import TensorCache

_checked = TensorCache()
_derived = TensorCache()


def check_order(name: str, order: Tensor, shape: tuple, device) -> None:
    """Raise unless dtype, shape and device fit, without reading values.

    Raises:
        ValueError: naming the argument and what to do.
    """
    if not isinstance(order, Tensor):
        raise TypeError(f'{name}: expected a tensor, got {_type_name(order)}')
    if order.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f'{name}: expected dtype int32 or int64, got {order.dtype}; '
            f'convert it with {name}.int()'
        )
    if order.shape != shape:
        letters = '(L,)' if len(shape) == 1 else '(K, L)'
        raise ValueError(
            f'{name}: expected shape {letters} = {tuple(shape)}, got '
            f'{tuple(order.shape)}'
        )
    if order.device != device:
        raise ValueError(
            f'{name}: is on {order.device}, but u is on {device}; move it '
            f'with {name}.to(u.device), once and not at every call'
        )


def _type_name(x: Any) -> str:
    return type(x).__name__


def checked_orders(orders: Tensor) -> Tensor:
    """Return an int32 copy (K, L) of orders which are permutations.

    The check sorts, and on other devices than the CPU waits for the device;
    a tensor that is passed again costs nothing.  The copy cannot change, so
    that no backend ever reads outside of its tensors.

    Args:
        orders: (K, L) or (L,), int32 or int64.

    Raises:
        ValueError: if a row does not hold each of 0..L-1 once.
    """
    return _checked.get(orders, None, _check_permutations)


def _check_permutations(orders: Tensor) -> Tensor:
    rows = orders.detach()
    rows = rows if rows.dim() == 2 else rows.unsqueeze(0)
    length = rows.shape[1]
    steps = torch.arange(length, device=rows.device, dtype=rows.dtype)
    wrong = (rows.sort(dim=1).values != steps).any(dim=1)
    if wrong.any():
        name = 'order' if orders.dim() == 1 else 'orders'
        row = '' if orders.dim() == 1 else f'row {wrong.int().argmax()}: '
        raise ValueError(
            f'{name}: {row}expected a permutation, each of 0..{length - 1} '
            f'exactly once; {name}[t] is the token that step t visits'
        )
    return rows.to(torch.int32, copy=True).contiguous()


def visited_tokens(orders: Tensor, reverse: tuple[bool, ...]) -> Tensor:
    """Return the token of each step, int64 (K, L), with directions reversed.

    Args:
        orders: of :func:`checked_orders`.
        reverse: K bools.
    """
    return _derived.get(orders, reverse, lambda x: _visited(x, reverse))


def _visited(orders: Tensor, reverse: tuple[bool, ...]) -> Tensor:
    rows = orders.long()
    if any(reverse):
        pairs = zip(rows.unbind(0), reverse)
        rows = torch.stack([x.flip(0) if back else x for x, back in pairs])
    return rows
