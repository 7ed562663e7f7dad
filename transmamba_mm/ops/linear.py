# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A linear map that uses the faster of PyTorch's two CPU matrix products.

PyTorch multiplies float32 matrices on the CPU with MKL, whose AVX-512 kernels
do not run on AMD processors; oneDNN's do. There it is 1.5 to 2.4 times faster,
forward and backward (``benchmarks/linear.py``).
"""

from functools import cache
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .flops import register_flops

# Below this many multiplications the detour costs more than it saves.
_SMALLEST = 1 << 20


@cache
def _onednn_pays() -> bool:
    """Whether this is an AMD processor with AVX-512 and oneDNN is there."""
    if torch.backends.cpu.get_cpu_capability() != 'AVX512':
        return False
    cpuinfo = Path('/proc/cpuinfo')
    if not cpuinfo.is_file() or 'AuthenticAMD' not in cpuinfo.read_text():
        return False
    return _HAS_ONEDNN


def _flops(a: torch.Size, b: torch.Size, *args, **kwargs) -> int:
    """Operations of ``a @ b.T`` by its shapes (m, k) and (n, k)."""
    return 2 * a[0] * a[1] * b[0]


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, '_linear_pointwise'
)
if _HAS_ONEDNN:
    # Now: a FLOP counter knows the formulas of the time it was made.
    register_flops(torch.ops.mkldnn._linear_pointwise)(_flops)


def _product(a: Tensor, b: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``a @ b.T + bias`` of two matrices by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, 'none', [], '')


class _OneDNNLinear(torch.autograd.Function):
    """oneDNN offers the product without a gradient; this is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # oneDNN is fast on dense matrices and their transposes; on others,
        # such as a slice of columns, it falls back to a reference loop.
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        weight = weight.contiguous()
        ctx.save_for_backward(rows, weight)
        ctx.x_shape = x.shape
        out = _product(rows, weight, bias)
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        rows, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).contiguous()
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = _product(grad, weight.t()).view(ctx.x_shape)
        if ctx.needs_input_grad[1]:
            # The first factor is copied into the order of rows, the second
            # is read in any: let the first be the smaller one.
            if grad.shape[1] > rows.shape[1]:
                weight_grad = _product(rows.t(), grad.t()).t().contiguous()
            else:
                weight_grad = _product(grad.t(), rows.t())
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum(0)
        return x_grad, weight_grad, bias_grad


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``torch.nn.functional.linear``, on oneDNN where that is faster.

    Both give the same result up to rounding. Which one runs depends on the
    machine, the dtype and the sizes alone, so runs stay reproducible.

    Args:
        x (Tensor): (..., in_features).
        weight (Tensor): (out_features, in_features).
        bias (Tensor, optional): (out_features,). Defaults to None.

    Returns:
        Tensor: (..., out_features).
    """
    if (
        x.device.type != 'cpu'
        or not x.dtype == weight.dtype == torch.float32
        or torch.is_autocast_enabled('cpu')
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        # Last, as comparing a size of torch.export would bound that size.
        or x.numel() * weight.shape[0] < _SMALLEST
        or not _onednn_pays()
    ):
        return F.linear(x, weight, bias)
    return _OneDNNLinear.apply(x, weight, bias)
