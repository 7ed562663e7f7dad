# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Triton kernels of RMS normalisation.

A tile has whole rows.  The weights' gradient is summed over the rows of a
program in registers, and over the programs by PyTorch: no atomic sums, so
that results do not change from run to run.

Only imported where triton is installed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import Launch, power_of_2

MOST_PROGRAMS = 512  # of the backward pass, hence rows for PyTorch to sum


@triton.jit
def _rows(step, count, D, BR: tl.constexpr, BN: tl.constexpr):
    """Return rows, columns, where they lie, and which exist."""
    r = step * BR + tl.arange(0, BR)
    n = tl.arange(0, BN)
    # 64 bits, as offsets may not fit in 32.
    at = r.to(tl.int64)[:, None] * D + n[None, :]
    return r, n, at, (r < count)[:, None] & (n < D)[None, :]


@triton.jit(do_not_specialize=('count',))
def norm_forward(
    x, weight, out, rstd, count, eps, D, BR: tl.constexpr, BN: tl.constexpr
):
    """Normalise ``count`` rows of ``D`` values, and keep ``rstd``."""
    r, n, at, mask = _rows(tl.program_id(0), count, D, BR, BN)
    w = tl.load(weight + n, mask=n < D, other=0.0).to(tl.float32)
    y = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(y * y, axis=1) / D + eps)
    tl.store(out + at, y * scale[:, None] * w[None, :], mask=mask)
    tl.store(rstd + r, scale, mask=r < count)


@triton.jit(do_not_specialize=('count',))
def norm_backward(
    grad_out,
    x,
    weight,
    rstd,
    grad_x,
    sums,
    count,
    D,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    """Compute ``grad_x``, and in ``sums`` (programs, D) that of ``weight``."""
    n = tl.arange(0, BN)
    in_n = n < D
    w = tl.load(weight + n, mask=in_n, other=0.0).to(tl.float32)
    total = tl.zeros((BR, BN), tl.float32)
    pid = tl.program_id(0)
    for step in range(pid, tl.cdiv(count, BR), tl.num_programs(0)):
        r, n, at, mask = _rows(step, count, D, BR, BN)
        g = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(rstd + r, mask=r < count, other=0.0)[:, None]
        y *= scale
        total += g * y
        g *= w[None, :]
        mean = tl.sum(g * y, axis=1) / D
        tl.store(grad_x + at, (g - y * mean[:, None]) * scale, mask=mask)
    sums += pid.to(tl.int64) * D
    tl.store(sums + n, tl.sum(total, axis=0), mask=in_n)


def _tile(D: int) -> dict[str, int]:
    BN = power_of_2(D)
    return dict(D=D, BR=max(1, 2048 // BN), BN=BN)


def _num_warps(BN: int) -> int:
    return max(4, BN // 512)


def plan_forward(
    x: Tensor, weight: Tensor, eps: float, out: Tensor, rstd: Tensor
) -> Launch:
    """Describe the forward launch.

    Args:
        x: (..., D), contiguous.
        weight: (D,), contiguous.
        eps: added to the mean square.
        out: to be written, as ``x``.
        rstd: to be written, (...), float32, contiguous.

    Returns:
        Launch: the launch.
    """
    tile, count = _tile(x.shape[-1]), rstd.numel()
    arguments = dict(
        tile, x=x, weight=weight, out=out, rstd=rstd, count=count, eps=eps
    )
    grid = (-(-count // tile['BR']),)
    return Launch(norm_forward, grid, arguments, _num_warps(tile['BN']))


def plan_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, grad_x: Tensor
) -> Launch:
    """Describe the backward launch, and allocate the sums of programs.

    Args:
        grad_out: (..., D), contiguous.
        x: as for :func:`plan_forward`.
        weight: see there.
        rstd: what the forward launch wrote.
        grad_x: to be written, as ``x``.

    Returns:
        Launch: the launch.
    """
    tile, count = _tile(x.shape[-1]), rstd.numel()
    programs = min(MOST_PROGRAMS, -(-count // tile['BR']))
    arguments = dict(
        tile,
        grad_out=grad_out,
        x=x,
        weight=weight,
        rstd=rstd,
        grad_x=grad_x,
        sums=rstd.new_empty(programs, tile['D']),
        count=count,
    )
    warps = _num_warps(tile['BN'])
    return Launch(norm_backward, (programs,), arguments, warps)


def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise.

    Args:
        x: (..., D).
        weight: (D,).
        eps: added to the mean square.

    Returns:
        tuple[Tensor, Tensor]: the result, contiguous, and the reciprocal root
        mean squares in float32.
    """
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    if x.numel():
        plan_forward(x, weight, eps, out, rstd).run(x)
    return out, rstd


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of ``x`` and ``weight``."""
    x, weight = x.contiguous(), weight.contiguous()
    grad_x = torch.empty_like(x)
    if not x.numel():
        return grad_x, torch.zeros_like(weight)
    launch = plan_backward(grad_out.contiguous(), x, weight, rstd, grad_x)
    launch.run(x)
    return grad_x, launch.arguments['sums'].sum(0).to(weight.dtype)
