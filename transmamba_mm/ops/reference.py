# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'reference'``: the recurrence written down, step by step.

Every other backend is tested against this one, run in float64.  It is plain
autograd and far too slow to train with.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def probe() -> Optional[str]:
    """Tell why the backend cannot be used; None because it always can."""
    return None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether inputs of this device and dtype are served."""
    return True


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],
    z: Optional[Tensor],
    delta_bias: Optional[Tensor],
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Scan checked inputs; see :func:`transmamba_mm.ops.selective_scan`."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, dt, A = u.to(dtype), delta.to(dtype), A.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt, threshold=20)
    B_steps = _per_step(B.to(dtype), u)
    C_steps = _per_step(C.to(dtype), u)
    h = x.new_zeros(u.shape[0], *A.shape)
    outputs = [x[:, :, :0]]
    for t in range(u.shape[2]):
        dt_t = dt[:, :, t, None]
        h = torch.exp(dt_t * A) * h + dt_t * B_steps[t] * x[:, :, t, None]
        outputs.append((h * C_steps[t]).sum(-1, keepdim=True))
    y = torch.cat(outputs, dim=2)
    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), h.detach()


def _per_step(x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Expand B or C, of any of its three shapes, to L tensors (B, D, N)."""
    batch, channels, length = u.shape
    if x.dim() == 2:
        return (x.expand(batch, -1, -1),) * length
    if x.dim() == 3:
        x = x.unsqueeze(1)
    return x.repeat_interleave(channels // x.shape[1], dim=1).unbind(-1)
