# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A linear map that uses the faster of PyTorch's two CPU matrix products.

PyTorch multiplies float32 matrices on the CPU with MKL, whose AVX-512 kernels
do not run on AMD processors; oneDNN's do. There it is 1.5 to 2.4 times faster,
forward and backward (``benchmarks/linear.py``).
"""

from functools import cache
from pathlib import Path
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import transforms
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
    """oneDNN offers the product without a gradient; this is its gradient.

    It is fast on dense matrices and their transposes; on others, such as a
    slice of columns, it falls back to a reference loop.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = _product(x.view(-1, x.shape[-1]), weight, bias)
        # Not a view of it, which nothing could change in place.
        shape = (*x.shape[:-1], weight.shape[0])
        return torch.ops.aten._unsafe_view(out, shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        rows = x.view(-1, x.shape[-1])
        grad = grad.reshape(-1, grad.shape[-1])
        # Of gradients that have gradients, only PyTorch's products do.
        twice = torch.is_grad_enabled()
        grad, product = (
            (grad, F.linear) if twice else (grad.contiguous(), _product)
        )
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = product(grad, weight.t()).view(x.shape)
        if ctx.needs_input_grad[1]:
            # The first factor is copied into the order of rows, the second
            # is read in any: let the first be the smaller one.
            if grad.shape[1] > rows.shape[1]:
                weight_grad = product(rows.t(), grad.t()).t().contiguous()
            else:
                weight_grad = product(grad.t(), rows.t())
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum(0)
        return x_grad, weight_grad, bias_grad


# Subclasses, such as quantised weights, may have a product of their own.
_PLAIN = (Tensor, nn.Parameter)


def _stays_pytorch(x: Tensor) -> bool:
    """Whether the linear maps of an input are left to PyTorch."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(x) not in _PLAIN
        or x.device.type != 'cpu'
        or x.dtype != torch.float32
        or torch.is_autocast_enabled('cpu')
        or transforms.active()
        or not torch._C._get_mkldnn_enabled()
        or not _onednn_pays()
    )


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
        _stays_pytorch(x)
        or type(weight) not in _PLAIN
        or type(bias) not in (type(None), *_PLAIN)
        or weight.dtype != torch.float32
        or x.numel() * weight.shape[0] < _SMALLEST
        # PyTorch says what does not fit.
        or x.shape[-1:] != weight.shape[1:]
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        return F.linear(x, weight, bias)
    return _OneDNNLinear.apply(x.contiguous(), weight.contiguous(), bias)


class _FastLinears(TorchFunctionMode):
    """Puts :func:`linear` in the place of ``F.linear``."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            function = linear
        return function(*args, **(kwargs or {}))


def with_fast_linears(module: Callable, x: Tensor, *args: Any) -> Tensor:
    """Return ``module(x, *args)``, its linear maps by :func:`linear`.

    So modules can be plain ``torch.nn.Linear``, which tools that quantise,
    adapt or prune know how to replace.

    Args:
        module (Callable): ``torch.nn.Linear``, what stands in its place, or
            what holds some.
        x (Tensor): Its input.
        *args (Any): Its further inputs.

    Returns:
        Tensor: Its output.
    """
    if _stays_pytorch(x):
        return module(x, *args)
    with _FastLinears():
        return module(x, *args)
