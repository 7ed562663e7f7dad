# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The pieces of the scan in plain PyTorch: blocks, layouts, recurrence.

See :mod:`.torch_chunked` for how they are put together.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Optional

import torch
from torch import Tensor

# Elements of one time step and of one block, measured on CPU for D * N from
# 384 to 12288 and batches of 1 to 256: a step must be large beside the cost
# of a call (about 1 us) and four blocks must stay in a shared L3 cache.
STEP_ELEMENTS = 48 * 1024
BLOCK_ELEMENTS = 768 * 1024
# A block's start state is what the backward pass keeps: at least MIN_STEPS
# between two bounds that memory to N / MIN_STEPS times that of ``u``.
MIN_STEPS, MAX_STEPS = 8, 128
# The same for devices that pay per launch.
DEVICE_BLOCK_ELEMENTS = 16 * 1024 * 1024
DEVICE_MAX_STEPS = 1024

_log1p_is_warm = False


class Block(NamedTuple):
    """Half-open ranges of time steps and batch items."""

    t0: int
    t1: int
    b0: int
    b1: int

    def of(self, x: Tensor) -> Tensor:
        """View a block of ``x (B, L, D)`` as (steps, rows, D)."""
        return x[self.b0 : self.b1, self.t0 : self.t1].transpose(0, 1)


class Plan(NamedTuple):
    """How a problem is cut: batch items and steps of a block."""

    rows: int
    steps: int
    two_level: bool


def make_plan(B: int, L: int, D: int, N: int, on_cpu: bool) -> Plan:
    """Choose the blocks of a problem of this size."""
    step = STEP_ELEMENTS if on_cpu else DEVICE_BLOCK_ELEMENTS // MIN_STEPS
    block = BLOCK_ELEMENTS if on_cpu else DEVICE_BLOCK_ELEMENTS
    most = MAX_STEPS if on_cpu else DEVICE_MAX_STEPS
    rows = _even(B, max(1, step // max(1, D * N)))
    steps = block // max(1, rows * D * N)
    steps = _even(L, min(most, max(MIN_STEPS, steps)))
    return Plan(rows, steps, two_level=not on_cpu and steps > 16)


def _even(total: int, most: int) -> int:
    """Size of the parts if ``total`` is cut evenly into parts <= most."""
    # Without floats: sizes may be symbolic.
    return -(-total // -(-total // most)) if total else 1


def row_groups(plan: Plan, B: int, L: int) -> Iterator[list[Block]]:
    """Yield the blocks of each group of batch items, in order of time."""
    for b0 in range(0, B, plan.rows):
        b1 = min(B, b0 + plan.rows)
        yield [
            Block(t0, min(L, t0 + plan.steps), b0, b1)
            for t0 in range(0, L, plan.steps)
        ]


def channels_inner(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, L, D) -> (B, L, D), copied unless channels are contiguous."""
    x = x.squeeze(1).to(dtype)
    return x if x.stride(2) == 1 else x.contiguous()


def to_states(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(D, N) -> (G, N, D / G)."""
    x = x.to(dtype).unflatten(0, (groups, -1))
    return x.transpose(1, 2).contiguous()


def from_states(x: Tensor) -> Tensor:
    """(G, N, D / G) -> (D, N)."""
    return x.transpose(1, 2).flatten(0, 1)


def to_coefs(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, G, L, N) -> (L, B, G, N); constant (D, N) -> (G, N, D / G)."""
    if x.dim() == 2:
        return to_states(x, groups, dtype)
    return x.squeeze(1).to(dtype).permute(2, 0, 1, 3)


def new_coefs_grad(x: Tensor) -> Tensor:
    """Return zeros for the gradient of :func:`to_coefs`' result."""
    if x.dim() == 3:
        return torch.zeros_like(x)
    length, batch, groups, N = x.shape
    # So stored, from_coefs need not copy.
    return x.new_zeros(batch, groups, length, N).permute(2, 0, 1, 3)


def from_coefs(grad: Tensor) -> Tensor:
    """Undo :func:`to_coefs`: (B, G, L, N) or (D, N)."""
    if grad.dim() == 3:
        return from_states(grad)
    return grad.permute(1, 2, 0, 3)


def coefs_at(x: Tensor, at: Block) -> Tensor:
    """View a block of :func:`to_coefs` so that it multiplies states."""
    if x.dim() == 3:
        return x
    return x[at.t0 : at.t1, at.b0 : at.b1].unsqueeze(-1)


def add_coefs(total: Tensor, part: Tensor, at: Block) -> None:
    """Put a block's share of a gradient of :func:`to_coefs` in place."""
    if total.dim() == 3:
        total += part
    else:
        total[at.t0 : at.t1, at.b0 : at.b1] = part


def softplus(x: Tensor, out: Tensor) -> Tensor:
    """Softplus (threshold 20), free of a tenfold slowdown of log1p.

    On AVX-512 the vectorised log1p ends in a masked load of the constant for
    an argument of -0.0.  Until that constant's page has been read once, every
    such load traps into microcode although the mask is empty: 10 ns per
    element and not 0.5 ns.  Reading it once, by log1p(-0.0), avoids that.
    """
    global _log1p_is_warm
    if not _log1p_is_warm and x.device.type == 'cpu':
        _log1p_is_warm = True
        for dtype in (torch.float32, torch.float64):
            torch.log1p(torch.full((16,), -0.0, dtype=dtype))
    return torch.ops.aten.softplus.out(x, 1, 20, out=out)


def advance(decays, states, before: Tensor) -> None:
    """Run ``states[t] += decays[t] * states[t - 1]``, one view per step."""
    for decay, state in zip(decays, states):
        before = state.addcmul_(decay, before)


def advance_two_level(decay: Tensor, state: Tensor) -> None:
    """Run ``state[t] += decay[t - 1] * state[t - 1]`` with few launches.

    All segments of about ``sqrt(steps)`` advance together as if nothing came
    before; then each segment's end is added to the next segment, weighted by
    the product of the decays since.  Those products are only multiplied by:
    they may underflow, rightly, and they overflow only for ``A > 0``.

    Args:
        decay: (steps - 1, ...).
        state: (steps, ...), changed in place.
    """
    T = state.shape[0]
    width = max(1, math.isqrt(T))
    count = T // width
    shape = (count, width, *state.shape[1:])
    segments = state[: count * width].view(shape)
    # weights[:, 0] carries the step from the segment before.
    weights = torch.cat((torch.ones_like(state[:1]), decay))
    weights = weights[: count * width].view(shape)
    for j in range(1, width):
        segments[:, j].addcmul_(weights[:, j], segments[:, j - 1])
        weights[:, j].mul_(weights[:, j - 1])
    for k in range(1, count):
        segments[k, -1].addcmul_(weights[k, -1], segments[k - 1, -1])
    segments[1:, :-1].addcmul_(weights[1:, :-1], segments[:-1, -1:])
    for t in range(count * width, T):
        state[t].addcmul_(decay[t - 1], state[t - 1])


def sum_states(
    x: Tensor, coef: Tensor, out: Tensor, work: Optional[Tensor] = None
) -> None:
    """Sum ``x * coef`` over the state axis.

    Args:
        x: (steps, rows, G, N, D / G).
        coef: (steps, rows, G, N, 1) or (G, N, D / G).
        out: (steps, rows, D), contiguous.
        work: like ``x``, overwritten if given, lest fresh memory be mapped
            for the product, which takes longer than the sum.
    """
    N, channels = x.shape[3:]
    if N == 1:
        torch.mul(x, coef, out=out.view(x.shape))
    elif coef.dim() == 3:
        product = torch.mul(x, coef, out=work)
        torch.sum(product, 3, out=out.view(*x.shape[:3], channels))
    else:
        torch.bmm(
            coef.reshape(-1, 1, N),
            x.view(-1, N, channels),
            out=out.view(-1, 1, channels),
        )


def sum_channels(tokens: Tensor, x: Tensor, coef: Tensor) -> Tensor:
    """Sum ``tokens * x`` to the shape of ``coef``, to be its gradient.

    Args:
        tokens: (steps, rows, G, 1, D / G).
        x: (steps, rows, G, N, D / G).
        coef: as for :func:`sum_states`.
    """
    if coef.dim() == 3:
        return (tokens * x).flatten(0, 1).sum(0)
    N, channels = x.shape[3:]
    rows = tokens.reshape(-1, 1, channels)
    total = torch.bmm(rows, x.view(-1, N, channels).transpose(1, 2))
    return total.view(x.shape[:4])
