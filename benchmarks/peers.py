# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Other implementations of the selective scan, and inputs for all.

``mambapy`` and ``transformers`` are used if they can be imported; neither is
needed.
"""

import contextlib
from typing import Callable

import torch
import torch.nn.functional as F

from transmamba_mm.ops import scan_backends, selective_scan

try:
    from mambapy.pscan import pscan
except ImportError:
    pscan = None

OURS = ('cpu', 'torch')  # backends for a CPU, the faster one first
Scan = Callable[..., torch.Tensor]


def ref(u, delta, A, B, C, D, delta_bias):
    """Loop over steps of precomputed tensors, as ``selective_scan_ref``.

    mamba-ssm's function for tests, without its complex and grouped cases.
    The backward pass of ``decay[:, :, i]`` makes a whole zero tensor each
    time: O(L^2).
    """
    delta = F.softplus(delta + delta_bias[:, None])
    x = A.new_zeros(u.shape[0], *A.shape)
    decay = torch.exp(torch.einsum('bdl,dn->bdln', delta, A))
    delta_B_u = torch.einsum('bdl,bnl,bdl->bdln', delta, B, u)
    outputs = []
    for i in range(u.shape[2]):
        x = decay[:, :, i] * x + delta_B_u[:, :, i]
        outputs.append(torch.einsum('bdn,bn->bd', x, C[:, :, i]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def mambapy_scan(u, delta, A, B, C, D, delta_bias):
    """Compute all states at once, as ``MambaBlock`` of mambapy does."""
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(delta.unsqueeze(-1) * A)
    states = pscan(decay, (delta * u).unsqueeze(-1) * B.unsqueeze(2))
    y = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
    return y.transpose(1, 2)


def transformers_scan() -> Scan:
    """Return the scan that transformers runs without mamba-ssm's kernels.

    Raises:
        ImportError: if transformers 5 is not installed.
    """
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    # Its decorator would look for compiled kernels.
    plain = getattr(mamba_selective_scan, '__wrapped__', mamba_selective_scan)

    def scan(u, delta, A, B, C, D, delta_bias):
        return plain(u, delta, A, B, C, D, None, delta_bias, True)

    return scan


def our_scan(backend: str) -> Scan:
    """Return our scan by one backend, with the arguments of the peers."""

    def scan(u, delta, A, B, C, D, delta_bias):
        return selective_scan(
            u, delta, A, B, C, D, None, delta_bias, True, backend=backend
        )

    return scan


def all_scans() -> dict[str, Scan]:
    """Name -> function: our backends for a CPU, then the peers."""
    status = scan_backends()
    scans = {
        name: our_scan(name)
        for name in OURS
        if name in status and status[name].available
    }
    scans['ref'] = ref
    if pscan is not None:
        scans['mambapy'] = mambapy_scan
    with contextlib.suppress(ImportError):
        scans['transformers'] = transformers_scan()
    for name in ('cpu', 'mambapy', 'transformers'):
        if name not in scans:
            print(f'{name} is not available: its rows are left out')
    return scans


def scan_inputs(shape, layout: str = 'bld') -> list[torch.Tensor]:
    """Inputs of a Mamba block at initialisation: u, delta, A, B, C, D, bias.

    Args:
        shape: (B, D, L, N).
        layout: ``'bld'`` stores tokens channels-last, ``'bdl'`` stores what
            the scan's arguments show.  Default ``'bld'``.

    Returns:
        list[Tensor]: leaves which require gradients.
    """
    B, D, L, N = shape
    torch.manual_seed(0)

    def tokens(channels):
        x = torch.randn(B, L, channels).transpose(1, 2)
        return x if layout == 'bld' else x.contiguous()

    inputs = (
        tokens(D),
        tokens(D) * 0.1,
        -torch.arange(1.0, N + 1).repeat(D, 1),
        tokens(N),
        tokens(N),
        torch.ones(D),
        torch.full((D,), -4.0),
    )
    return [x.detach().requires_grad_() for x in inputs]


def forward(scan: Callable, inputs, *more) -> torch.Tensor:
    """Run without gradients."""
    with torch.no_grad():
        return scan(*inputs, *more)


def forward_backward(scan: Callable, inputs, dout, *more) -> None:
    """Run and compute the gradients of all inputs."""
    torch.autograd.grad(scan(*inputs, *more), inputs, dout)


def cross_scan(u: torch.Tensor, side: int) -> torch.Tensor:
    """Copy an image in four orders, as VMamba: (B, D, L) to (B, 4, D, L)."""
    columns = u.unflatten(2, (side, side)).transpose(2, 3).flatten(2)
    both = torch.stack([u, columns], dim=1)
    return torch.cat([both, both.flip(-1)], dim=1)


def cross_merge(y: torch.Tensor, side: int) -> torch.Tensor:
    """Add up what four orders gave, in raster order: (B, D, L)."""
    both = y[:, :2] + y[:, 2:].flip(-1)
    columns = both[:, 1].unflatten(2, (side, side)).transpose(2, 3)
    return both[:, 0] + columns.flatten(2)
