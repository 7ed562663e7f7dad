# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'cpu'``: the C++ kernel of :mod:`..native`.

It reads and writes float32, bfloat16 and float16 tensors of any strides and
computes in float32.  Channels-last tensors are used in place; others are
transposed in small tiles on the way in.  Orders and reversed directions are
followed inside the kernel.  The backward pass keeps the state before every
32nd step, N / 32 times the memory of ``u``, and computes the others again.
"""

import functools
import math
import warnings
from typing import Optional

import torch
from torch import Tensor

from ..native import library
from .problem import TENSORS, ScanProblem

LOG2_E = math.log2(math.e)
# Channels that a task works on at once: their tiles must fit in a core's
# second-level cache (7 tiles of 2 KiB for 16 channels).
MOST_CHANNELS = 384


def probe() -> Optional[str]:
    """Tell why the backend cannot be used, and what to do; None if it can."""
    reason = library.unavailable()
    if reason is not None:
        _warn(reason)
    return reason


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f'Selective scans on CPU run in PyTorch operations, which takes '
        f'five to eight times as long as the C++ kernel, because: {reason}',
        stacklevel=2,
    )


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether inputs of this device and dtype are served."""
    return device.type == 'cpu' and dtype in library.DTYPES


def refuses(p: ScanProblem) -> Optional[str]:
    """Tell why this problem is not served; None if it is."""
    if p.B.dim() == 2 or p.C.dim() == 2:
        return 'B and C that are constant in time are not implemented'
    if len(p.reverse) > 63:
        return f'{len(p.reverse)} directions are too many'
    for name, x in zip(p._fields, p.tensors):
        if x is not None and x.dtype not in library.DTYPES:
            return f'{name} has dtype {x.dtype}'
    return None


def states_shape(p: ScanProblem) -> tuple[int, ...]:
    """Shape of the kept states: (B, K, chunks, N, D)."""
    batch, K, length, channels, N = p.sizes
    return batch, K, -(-length // library.CHUNK), N, channels


def forward(p: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; see :class:`ScanProblem`."""
    out, last = p.new_out(), p.new_last_state()
    states = last.new_empty(states_shape(p) if keep else (0,))
    arguments, _alive = _arguments(p)
    arguments['out'] = library.tokens(out)
    arguments['last'] = last.data_ptr()
    arguments['states'] = states.data_ptr() if keep else None
    library.call('tm_scan_forward', library.Scan(**arguments))
    return out, last, states


def backward(
    p: ScanProblem, states: Tensor, grad_out: Tensor, needs: tuple[bool, ...]
) -> list[Optional[Tensor]]:
    """Compute the gradients; see :class:`ScanProblem`."""
    batch, K, length, channels, N = p.sizes
    arguments, _alive = _arguments(p)
    parts = arguments['parts']
    new = states.new_empty
    # What several directions add up in float32 is rounded once, at the end.
    grad_u = new(p.u.shape, dtype=_sum_dtype(p.u, K))
    grad_delta = new(p.delta.shape, dtype=_sum_dtype(p.delta, K))
    grad_z = None
    if p.z is not None and needs[TENSORS.index('z')]:
        grad_z = new(p.z.shape, dtype=_sum_dtype(p.z, K))
    grad_B = new(parts, batch, K, p.groups, length, N)
    grad_C = torch.empty_like(grad_B)
    grad_A = new(batch, K, N, channels)
    grad_D, grad_bias = new(2, batch, K, channels)
    scan = library.Scan(
        **arguments,
        states=states.data_ptr(),
        grad_out=library.tokens(grad_out),
        grad_u=library.tokens(grad_u),
        grad_delta=library.tokens(grad_delta),
        grad_z=library.tokens(grad_z),
        grad_a=grad_A.data_ptr(),
        grad_b=grad_B.data_ptr(),
        grad_c=grad_C.data_ptr(),
        grad_d=grad_D.data_ptr(),
        grad_bias=grad_bias.data_ptr(),
    )
    library.call('tm_scan_backward', scan)
    found = (
        grad_u,
        grad_delta,
        grad_A.sum(0).transpose(1, 2),
        grad_B.sum(0) if parts > 1 else grad_B[0],
        grad_C.sum(0) if parts > 1 else grad_C[0],
        grad_D.sum(0),
        grad_z,
        grad_bias.sum(0),
    )
    return [
        None if x is None or not need else _fit(grad, x)
        for x, grad, need in zip(p.tensors, found, needs)
    ]


def _sum_dtype(x: Tensor, K: int) -> torch.dtype:
    return torch.float32 if x.shape[1] < K else x.dtype


def _fit(grad: Tensor, x: Tensor) -> Tensor:
    """Sum over the directions that share ``x``; give it its dtype."""
    axis = 0 if x.dim() < 4 else 1  # A, D and delta_bias have no batch
    if grad.shape[axis] != x.shape[axis]:
        grad = grad.sum(axis, keepdim=True)
    return grad.to(x.dtype).contiguous()


def _arguments(p: ScanProblem) -> tuple[dict, list[Tensor]]:
    """Fields of ``TmScan``, and the copies which they point into."""
    batch, K, length, channels, N = p.sizes
    G, threads = p.groups, torch.get_num_threads()
    parts = -(-channels // (G * MOST_CHANNELS))
    if threads > 1:
        # Twice as many tasks as threads evens out their ends.
        parts = max(parts, -(-2 * threads // max(1, batch * G)))
    alive = [
        (p.A.float() * LOG2_E).transpose(1, 2).contiguous(),
        None if p.D is None else p.D.float().contiguous(),
        None if p.delta_bias is None else p.delta_bias.float().contiguous(),
    ]
    (a, a_sk), (d, d_sk), (bias, bias_sk) = map(_vector, alive)
    arguments = {
        'B': batch,
        'K': K,
        'G': G,
        'L': length,
        'D': channels,
        'N': N,
        'u': library.tokens(p.u),
        'delta': library.tokens(p.delta),
        'z': library.tokens(p.z),
        'b': library.coefs(p.B),
        'c': library.coefs(p.C),
        'a': a,
        'a_sk': a_sk,
        'd': d,
        'd_sk': d_sk,
        'bias': bias,
        'bias_sk': bias_sk,
        'orders': None if p.orders is None else p.orders.data_ptr(),
        'reverse': sum(bit << k for k, bit in enumerate(p.reverse)),
        'softplus': p.delta_softplus,
        'by_step': p.by_step,
        'parts': max(1, min(parts, channels // G // 16)),
        'threads': threads,
    }
    return arguments, alive


def _vector(x: Optional[Tensor]) -> tuple[Optional[int], int]:
    """Pointer, and stride of the directions, 0 if they share the tensor."""
    if x is None:
        return None, 0
    return x.data_ptr(), 0 if x.shape[0] == 1 else x.stride(0)
