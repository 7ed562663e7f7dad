# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""One step of the selective scan, to generate token after token."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_tensors


def selective_state_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    delta_bias: Optional[Tensor] = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Advance the recurrence of :func:`selective_scan` by one token.

    ``state`` is changed in place.  It starts as zeros, or as the last state
    that the scan of a prefix returned.  The meaning is that of mamba-ssm's
    ``selective_state_update``.  It computes in float32, or float64 if
    ``state`` or ``u`` is float64; a float32 state should be kept for half
    precision inputs too.

    Args:
        state: ``h``, (B, D, N).
        u: input, (B, D).
        delta: step sizes, (B, D).
        A: decay rates, (D, N).
        B: input weights, (B, N), or (B, G, N) where group g serves the
            contiguous channels ``[g * D / G, (g + 1) * D / G)``.  Weights
            (D, N) that are constant in time are G = D groups:
            ``weights.expand(batch, -1, -1)``.
        C: output weights, as ``B``.
        D: skip weights, (D,).  Default None: no skip.
        z: gate, (B, D).  Default None: no gate.
        delta_bias: added to ``delta`` before softplus, (D,).  Default None.
        delta_softplus: pass the step sizes through softplus.  Default False.

    Returns:
        Tensor: output, (B, D), in ``u.dtype``.

    Raises:
        TypeError: if an input is not a real floating-point tensor.
        ValueError: if a shape or device does not fit.
        RuntimeError: if a gradient would be needed: the state's past is
            overwritten.
    """
    _check(state, u, delta, A, B, C, D, z, delta_bias)
    doubles = torch.float64 in (state.dtype, u.dtype)
    wide = torch.float64 if doubles else torch.float32
    channels = u.shape[1]
    dt, x = delta.to(wide), u.to(wide)
    if delta_bias is not None:
        dt = dt + delta_bias.to(wide)
    if delta_softplus:
        dt = F.softplus(dt, threshold=20)
    decay = torch.exp(dt.unsqueeze(2) * A.to(wide))
    h = state.to(wide) * decay
    h += (dt * x).unsqueeze(2) * _per_channel(B.to(wide), channels)
    state.copy_(h)
    y = (h * _per_channel(C.to(wide), channels)).sum(2)
    if D is not None:
        y = y + D.to(wide) * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(u.dtype)


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """(B, N) -> (B, 1, N), (B, G, N) -> (B, D, N)."""
    if x.dim() == 2:
        return x.unsqueeze(1)
    return x.repeat_interleave(channels // x.shape[1], dim=1)


def _check(state, u, delta, A, B, C, D, z, delta_bias) -> None:
    given = dict(state=state, u=u, delta=delta, A=A, B=B, C=C)
    optional = dict(D=D, z=z, delta_bias=delta_bias)
    given.update((k, x) for k, x in optional.items() if x is not None)
    check_tensors(**given)
    for name, x in given.items():
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f'{name} requires grad, but selective_state_step has no '
                f'gradient; call it under torch.no_grad(), or train with '
                f'selective_scan'
            )
    if state.dim() != 3:
        raise ValueError(
            f'state: expected shape (B, D, N), got {tuple(state.shape)}'
        )
    batch, channels, N = state.shape
    for name, letters, shape in (
        ('u', '(B, D)', (batch, channels)),
        ('delta', '(B, D)', (batch, channels)),
        ('A', '(D, N)', (channels, N)),
        ('D', '(D,)', (channels,)),
        ('z', '(B, D)', (batch, channels)),
        ('delta_bias', '(D,)', (channels,)),
    ):
        if name in given and given[name].shape != shape:
            raise ValueError(
                f'{name}: expected shape {letters} = {shape}, got '
                f'{tuple(given[name].shape)}'
            )
    for name, x in (('B', B), ('C', C)):
        groups = x.shape[1] if x.dim() == 3 else 1
        if x.shape not in ((batch, N), (batch, groups, N)):
            raise ValueError(
                f'{name}: expected shape (B, N) = {(batch, N)} or (B, G, N) '
                f'= ({batch}, G, {N}), got {tuple(x.shape)}'
            )
        if groups < 1 or channels % groups:
            raise ValueError(
                f'{name}: its {groups} groups (axis 1 of {tuple(x.shape)}) '
                f'must divide D = {channels}'
            )
