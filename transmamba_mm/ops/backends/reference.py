# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'reference'``: the recurrence written down, step by step.

Every other backend is tested against this one, run in float64.  It is plain
autograd and far too slow to train with.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import ScanProblem

DIFFERENTIABLE = True


def probe() -> Optional[str]:
    """Tell why the backend cannot be used; None because it always can."""
    return None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether inputs of this device and dtype are served."""
    return True


def forward(p: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; see :class:`ScanProblem`.  No states are kept."""
    dtype = p.wide_dtype
    batch, K, length, channels, N = p.sizes
    visits = _visits(p)  # (K, L): the token of each step
    rows = torch.arange(K, device=visits.device)[:, None]
    reads = torch.arange(length, device=visits.device).expand(K, -1)
    reads = reads if p.by_step else visits

    def tokens(x: Tensor, at: Tensor) -> Tensor:
        return x.to(dtype).expand(-1, K, -1, -1)[:, rows, at]

    def coefs(x: Tensor) -> Tensor:
        """Return (B, K, L, D, N)."""
        x = x.to(dtype)
        if x.dim() == 2:
            return x.expand(batch, K, length, -1, -1)
        x = x.transpose(2, 3).expand(-1, K, -1, -1, -1)[:, rows, reads]
        return x.repeat_interleave(channels // x.shape[3], dim=3)

    x, dt, A = tokens(p.u, visits), tokens(p.delta, reads), p.A.to(dtype)
    if p.delta_bias is not None:
        dt = dt + p.delta_bias.to(dtype).unsqueeze(1)
    if p.delta_softplus:
        dt = F.softplus(dt, threshold=20)
    h = x.new_zeros(batch, K, channels, N)
    outputs = []
    # unbind: the gradient of an index would be a tensor of all steps.
    steps = (y.unbind(2) for y in (x, dt, coefs(p.B), coefs(p.C)))
    for x_t, dt_t, B_t, C_t in zip(*steps):
        dt_t, x_t = dt_t.unsqueeze(-1), x_t.unsqueeze(-1)
        h = torch.exp(dt_t * A) * h + dt_t * B_t * x_t
        outputs.append((h * C_t).sum(-1))
    y = torch.stack(outputs, dim=2) if outputs else x
    if p.D is not None:
        y = y + p.D.to(dtype).unsqueeze(1) * x
    y = y[:, rows, visits.argsort(dim=1)]
    if p.z is not None:
        y = y * F.silu(p.z.to(dtype))
    if p.merge:
        y = y.sum(1, keepdim=True)
    return y.to(p.u.dtype), h.detach(), h.new_empty(0)


def _visits(p: ScanProblem) -> Tensor:
    _, K, length, _, _ = p.sizes
    orders = p.orders
    if orders is None:
        orders = torch.arange(length, device=p.u.device).expand(K, -1)
    rows = zip(orders.long().unbind(0), p.reverse)
    return torch.stack([x.flip(0) if back else x for x, back in rows])
