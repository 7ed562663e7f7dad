# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Scan orders: in which order a direction visits the patch tokens.

A scan order is a registered function ``(h, w) -> LongTensor (h*w,)``, or
``(t, h, w) -> LongTensor (t*h*w,)`` for videos, that returns the raster index
visited at each step. Backbones name the orders they
use, and distillation permutes teacher tokens with the very same functions, so
a new order is one function with ``@SCAN_ORDERS.register_module()``.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transmamba_mm.ops.caching import cached_tensors
from transmamba_mm.registry import SCAN_ORDERS


def _raster(h: int, w: int) -> Tensor:
    return torch.arange(h * w, device='cpu').view(h, w)


@SCAN_ORDERS.register_module()
def raster(*grid: int) -> Tensor:
    """Row by row, each row left to right; frame by frame in a video."""
    return torch.arange(math.prod(grid), device='cpu')


@SCAN_ORDERS.register_module()
def raster_reverse(*grid: int) -> Tensor:
    """The reverse of :func:`raster`."""
    return raster(*grid).flip(0)


@SCAN_ORDERS.register_module()
def column(h: int, w: int) -> Tensor:
    """Column by column, each column top to bottom."""
    return _raster(h, w).t().flatten()


@SCAN_ORDERS.register_module()
def column_reverse(h: int, w: int) -> Tensor:
    """The reverse of :func:`column`."""
    return column(h, w).flip(0)


def _snake(grid: Tensor) -> Tensor:
    """Reads rows alternately left to right and right to left."""
    grid = grid.clone()
    grid[1::2] = grid[1::2].flip(1)
    return grid.flatten()


@SCAN_ORDERS.register_module()
def snake_horizontal(h: int, w: int) -> Tensor:
    """Continuous rows from the top left (PlainMamba's scan 0)."""
    return _snake(_raster(h, w))


@SCAN_ORDERS.register_module()
def snake_horizontal_reverse(h: int, w: int) -> Tensor:
    """The reverse of :func:`snake_horizontal` (PlainMamba's scan 1)."""
    return snake_horizontal(h, w).flip(0)


@SCAN_ORDERS.register_module()
def snake_vertical(h: int, w: int) -> Tensor:
    """Continuous columns from the top left (PlainMamba's scan 2)."""
    return _snake(_raster(h, w).t())


@SCAN_ORDERS.register_module()
def snake_vertical_reverse(h: int, w: int) -> Tensor:
    """The reverse of :func:`snake_vertical` (PlainMamba's scan 3)."""
    return snake_vertical(h, w).flip(0)


def scan_order(name: str, *grid: int, device: str = 'cpu') -> Tensor:
    """Looks a scan order up by name, cached per grid and device.

    Args:
        name (str): Registered name, e.g. ``'snake_horizontal'``. What
            follows a colon is ignored: ``'raster:2'`` is a second scan of
            the same order.
        *grid (int): Grid in tokens, h, w or t, h, w.
        device (str): Where the result lives. Defaults to ``'cpu'``.

    Returns:
        Tensor: LongTensor (h*w,) or (t*h*w,), the raster index visited at
        each step. It is shared: do not modify it.

    Raises:
        KeyError: If no scan order of that name is registered.
        TypeError: If the order is not defined on such a grid.
        ValueError: If the order is no permutation of the tokens.
    """
    name = name.partition(':')[0]
    fn = SCAN_ORDERS.get(name)
    if fn is None:
        known = sorted(SCAN_ORDERS.module_dict)
        raise KeyError(
            f"unknown scan order '{name}'; registered: {', '.join(known)}"
        )
    return _cached_order(name, fn, grid, device)[0]


def order_functions(names: tuple[str, ...], *_: Any) -> tuple:
    """The functions that names stand for now, for caches by name."""
    known = SCAN_ORDERS.module_dict
    return tuple(known.get(name.partition(':')[0]) for name in names)


def fix_size(images: Tensor) -> None:
    """Makes torch.compile take the size of images (B, C, H, W) as constant.

    The tables of scan orders fix it in any case, so there is a graph for
    every size. Left to find that out late, the compiler takes several times
    as long, and fails at the gradient of VMamba's downsampling.
    """
    for side in images.shape[2:]:
        operator.index(side)


@cached_tensors(maxsize=256)
def _cached_order(
    name: str, fn: Callable[..., Tensor], grid: tuple[int, ...], device: str
) -> tuple[Tensor]:
    # Not where `torch.device` says, which may be a place without values.
    with torch.device('cpu'):
        order = fn(*grid)
        _check_order(name, order, grid)
    return (order.to(device),)


def _check_order(name: str, order: Any, grid: tuple[int, ...]) -> None:
    length = math.prod(grid)
    if not isinstance(order, Tensor):
        got = f'a {type(order).__name__}'
    elif order.dtype != torch.int64 or order.shape != (length,):
        got = f'{order.dtype} of shape {tuple(order.shape)}'
    elif not order.cpu().sort().values.equal(torch.arange(length)):
        got = 'one that repeats or misses some'
    else:
        return
    raise ValueError(
        f"scan order '{name}' must return a LongTensor ({length},) on a grid "
        f'{"x".join(map(str, grid))}, with each raster index 0..{length - 1} '
        f'exactly once, got {got}'
    )
