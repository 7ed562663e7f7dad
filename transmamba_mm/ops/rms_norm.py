# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""RMS normalisation whose backward pass is one kernel, on CPU and on GPUs.

PyTorch differentiates its CPU RMSNorm operation by operation, five times
slower than LayerNorm's.  On GPUs, where each operation of a small tensor
costs a launch, there are Triton kernels (:mod:`.rms_norm_triton`).
"""

import torch
from torch import Tensor

from . import transforms, triton_launch
from .checks import check_tensors
from .native import library

_WIDEST_ON_GPU = 8192  # 16 values of a row per thread of 16 warps

_lib = torch.library.Library('transmamba_mm', 'FRAGMENT')
_lib.define('rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)')
_lib.define(
    'rms_norm_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor rstd)'
    ' -> (Tensor, Tensor)'
)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Divide by the root mean square over the last axis, times ``weight``.

    Statistics are taken in float32 at least.

    Args:
        x: (..., D).
        weight: (D,).
        eps: added to the mean square.  Default 1e-5.

    Returns:
        Tensor: (..., D), in ``x.dtype``.

    Raises:
        TypeError: if an input is not a real floating-point tensor.
        ValueError: if the shapes or devices do not fit, or ``eps`` is
            negative.
    """
    check_tensors(x=x, weight=weight)
    if x.dim() == 0:
        raise ValueError('x: expected shape (..., D), got a number, ()')
    if not eps >= 0:
        raise ValueError(f'eps: expected a number of at least 0, got {eps}')
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f'weight: expected shape {tuple(x.shape[-1:])}, that of the last '
            f'axis of x, got {tuple(weight.shape)}'
        )
    if not _has_kernel(x, weight):
        return _composed(x, weight, eps)
    if (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    ):
        return _op(x, weight, eps)[0]
    return _Norm.apply(x, weight, eps)[0]


def _composed(x, weight, eps):
    """The same in PyTorch operations."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


def _has_kernel(x, weight) -> bool:
    if transforms.active():
        return False
    if x.device.type == 'cpu':
        return (
            x.dtype == weight.dtype == torch.float32
            and library.unavailable() is None
        )
    return (
        x.device.type == 'cuda'
        and x.dtype in triton_launch.DTYPES
        and weight.dtype in triton_launch.DTYPES
        and weight.shape[0] <= _WIDEST_ON_GPU
        and triton_launch.serves(x.device.index)
    )


def _forward(x, weight, eps):
    x, weight = x.contiguous(), weight.contiguous()
    out, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1])
    norm = _arguments(x, weight)
    norm.out, norm.rstd, norm.eps = out.data_ptr(), rstd.data_ptr(), eps
    library.call('tm_norm_forward', norm)
    return out, rstd


def _backward(grad_out, x, weight, rstd):
    x, weight = x.contiguous(), weight.contiguous()
    grad_out, grad_x = grad_out.contiguous(), torch.empty_like(x)
    norm = _arguments(x, weight)
    grad_weight = x.new_empty(norm.parts, norm.D)
    norm.rstd = rstd.data_ptr()
    norm.grad_out, norm.grad_x = grad_out.data_ptr(), grad_x.data_ptr()
    norm.grad_weight = grad_weight.data_ptr()
    library.call('tm_norm_backward', norm)
    return grad_x, grad_weight.sum(0)


def _forward_on_gpu(x, weight, eps):
    from . import rms_norm_triton

    return rms_norm_triton.forward(x, weight, eps)


def _backward_on_gpu(grad_out, x, weight, rstd):
    from . import rms_norm_triton

    return rms_norm_triton.backward(grad_out, x, weight, rstd)


def _arguments(x, weight):
    norm = library.Norm()
    norm.D = x.shape[-1]
    norm.rows = x.numel() // max(1, norm.D)
    norm.threads = norm.parts = torch.get_num_threads()
    norm.x, norm.weight = x.data_ptr(), weight.data_ptr()
    return norm


def _fake_forward(x, weight, eps):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty(x.shape[:-1], dtype=torch.float32)


def _fake_backward(grad_out, x, weight, rstd):
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return grad_x, weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):
    ctx.eps = inputs[2]
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # filling that of rstd is a launch


def _autograd_backward(ctx, grad_out, _):
    if grad_out is None:
        return None, None, None
    if torch.is_grad_enabled():
        grads = transforms.gradients(
            lambda x, weight: _composed(x, weight, ctx.eps),
            ctx.saved_tensors[:2],
            ctx.needs_input_grad[:2],
            grad_out,
        )
        return *grads, None
    grads = torch.ops.transmamba_mm.rms_norm_backward.default(
        grad_out, *ctx.saved_tensors
    )
    needed = zip(ctx.needs_input_grad, grads)
    return (*(grad if need else None for need, grad in needed), None)


_lib.impl('rms_norm', _forward, 'CPU')
_lib.impl('rms_norm_backward', _backward, 'CPU')
_lib.impl('rms_norm', _forward_on_gpu, 'CUDA')
_lib.impl('rms_norm_backward', _backward_on_gpu, 'CUDA')
torch.library.register_fake('transmamba_mm::rms_norm', _fake_forward, lib=_lib)
torch.library.register_fake(
    'transmamba_mm::rms_norm_backward', _fake_backward, lib=_lib
)
torch.library.register_autograd(
    'transmamba_mm::rms_norm',
    _autograd_backward,
    setup_context=_setup_context,
    lib=_lib,
)


_op = torch.ops.transmamba_mm.rms_norm.default


class _Norm(torch.autograd.Function):
    """The autograd of the operator, for eager mode.

    That of ``register_autograd`` takes 10 us more, and a separate
    ``setup_context`` even 50.
    """

    @staticmethod
    def forward(ctx, *args):
        output = _op(*args)
        _setup_context(ctx, args, output)
        return output

    backward = staticmethod(_autograd_backward)
