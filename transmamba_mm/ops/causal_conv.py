# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Causal depth-wise convolution over tokens, fused with SiLU.

The step before the scan in Mamba, Vim and VideoMamba.  On CPU a C++ kernel
(:mod:`.native`) does convolution, bias and SiLU in one pass over
channels-last tokens, forward and backward, and on GPUs a Triton kernel
(:mod:`.causal_conv_triton`), for all directions at once; elsewhere, or without
the kernel, PyTorch does them one after another.
"""

import math
from collections.abc import Sequence
from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from . import transforms, triton_launch
from .checks import check_tensors
from .flops import register_flops
from .native import library

_DTYPES = library.DTYPES
_WIDTHS = (2, 3, 4)  # those of csrc/conv.h and causal_conv_triton.py
_MOST_ON_GPU = 4  # directions; more would not fit into the registers

# The tracer of TorchScript knows no bool[]: hence int[].  With a weight
# (D, width) there is one direction, and no axis of directions in `out`.
_lib = torch.library.Library('transmamba_mm', 'FRAGMENT')
_lib.define(
    'causal_conv1d_silu(Tensor x, Tensor weight, Tensor? bias, int[] reverse)'
    ' -> Tensor'
)
_lib.define(
    'causal_conv1d_silu_backward(Tensor grad_out, Tensor x, Tensor weight,'
    ' Tensor? bias, int[] reverse) -> (Tensor, Tensor, Tensor)'
)


def causal_conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    reverse: Union[bool, Sequence[bool]] = False,
) -> Tensor:
    """Convolve each channel with the tokens before it, then apply SiLU.

    ``out[:, t] = silu(bias + sum over k of weight[:, k] * x[:, t - (width - 1)
    + k])``, with zeros before the first token.  The kernels serve widths 2 to
    4 of float32, bfloat16 and float16 tokens, with sums in float32; that for
    GPUs up to 4 directions.

    With weights (K, D, width), the same tokens are convolved K times, each
    time with other weights and in a direction of its own.

    Args:
        x: tokens, (B, L, D), any strides; channels-last is fastest.  This is
            the layout of tokens, and the transpose of what
            :func:`selective_scan` takes: where L = D, nothing can tell one
            from the other, so pass ``x.mT`` of (B, D, L).
        weight: (D, width) or (K, D, width).  ``conv1d.weight.squeeze(1)`` of
            the depth-wise convolution of an official checkpoint.
        bias: (D,) or (K, D).  Default None.
        reverse: look at the tokens after each one instead of those before,
            that is walk backwards; a sequence of K of these if there is an
            axis of directions.  Default False.

    Returns:
        Tensor: (B, L, D), contiguous, in ``x.dtype``, or (B, K, L, D).  That
        is stored as (K, B, L, D), of which it is the transpose: each
        direction ``out[:, k]`` is contiguous.

    Raises:
        TypeError: if an input is not a real floating-point tensor.
        ValueError: if a shape or device does not fit.
    """
    _check(x, weight, bias, reverse)
    if weight.dim() == 2:
        reverse = (reverse,)
    # The operator takes numbers.
    reverse = [1 if back else 0 for back in reverse]
    if not _has_kernel(x, weight, bias):
        return _composed(x, weight, bias, reverse)
    if (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    ):
        return _op(x, weight, bias, reverse)
    return _Conv.apply(x, weight, bias, reverse)


def _has_kernel(x, weight, bias) -> bool:
    if transforms.active():
        return False
    if x.dtype not in _DTYPES or weight.shape[-1] not in _WIDTHS:
        return False
    if x.device.type == 'cpu':
        return library.unavailable() is None
    return (
        x.device.type == 'cuda'
        and weight.dtype in _DTYPES
        and (bias is None or bias.dtype in _DTYPES)
        and (weight.dim() == 2 or weight.shape[0] <= _MOST_ON_GPU)
        and triton_launch.serves(x.device.index)
    )


def _check(x, weight, bias, reverse) -> None:
    check_tensors(x=x, weight=weight, bias=weight if bias is None else bias)
    if x.dim() != 3:
        raise ValueError(f'x: expected shape (B, L, D), got {tuple(x.shape)}')
    if weight.dim() not in (2, 3) or weight.shape[-1] < 1:
        raise ValueError(
            f'weight: expected shape (D, width) or (K, D, width) with width '
            f'>= 1, got {tuple(weight.shape)}'
        )
    channels = x.shape[2]
    if weight.shape[-2] != channels:
        if weight.shape[-2] == x.shape[1]:
            raise ValueError(
                f'x: expected shape (B, L, D) with D = {x.shape[1]}, the '
                f'channels of weight, got {tuple(x.shape)}, which looks like '
                f'(B, D, L); pass x.mT'
            )
        raise ValueError(
            f'weight: expected shape (K, D, width) or (D, width) = '
            f'({channels}, width), got {tuple(weight.shape)}'
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        expected = '(D,)' if weight.dim() == 2 else '(K, D)'
        raise ValueError(
            f'bias: expected shape {expected} = {tuple(weight.shape[:-1])}, '
            f'got {tuple(bias.shape)}'
        )
    many = isinstance(reverse, (list, tuple))
    if weight.dim() == 2 and many:
        raise ValueError(
            f'reverse: expected one bool for a weight of shape (D, width), '
            f'got {reverse}'
        )
    if weight.dim() == 3 and (
        not many or not 0 < len(reverse) == weight.shape[0]
    ):
        raise ValueError(
            f'reverse: expected a sequence of K = {weight.shape[0]} >= 1 '
            f'bools, one per direction of weight, got {reverse}'
        )


def _composed(x, weight, bias, reverse):
    """The same in PyTorch operations."""
    if weight.dim() == 2:
        return _composed_one(x, weight, bias, reverse[0])
    outs = [
        _composed_one(x, weight[k], None if bias is None else bias[k], back)
        for k, back in enumerate(reverse)
    ]
    return torch.stack(outs).transpose(0, 1)


def _composed_one(x, weight, bias, reverse):
    width = weight.shape[1]
    weight = weight.to(x.dtype).unsqueeze(1)
    bias = None if bias is None else bias.to(x.dtype)
    x = x.flip(1) if reverse else x
    x = F.pad(x.transpose(1, 2), (width - 1, 0))
    out = F.silu(F.conv1d(x, weight, bias, groups=weight.shape[0]))
    out = out.transpose(1, 2)
    return (out.flip(1) if reverse else out).contiguous()


def _new_out(x, weight):
    """Storage of the result; not a view, which nobody could change in place.

    That is, a view made within a node of autograd.
    """
    batch, length, channels = x.shape
    if weight.dim() == 2:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    sample = length * channels
    return x.new_empty_strided(
        (batch, weight.shape[0], length, channels),
        (sample, batch * sample, channels, 1),
    )


def _forward(x, weight, bias, reverse):
    out = _new_out(x, weight)
    outs = out.unsqueeze(1) if weight.dim() == 2 else out
    for k, conv in _directions(x, weight, bias, reverse):
        conv.out = library.tokens(outs[:, k : k + 1])
        library.call('tm_conv_forward', conv)
    return out


def _backward(grad_out, x, weight, bias, reverse):
    K, (batch, length, channels) = len(reverse), x.shape
    if weight.dim() == 2:
        grad_out = grad_out.unsqueeze(1)
    # The sum over directions is rounded once.
    dtype = x.dtype if K == 1 else torch.float32
    grad_x = x.new_empty((K, batch, length, channels), dtype=dtype)
    grad_weight = weight.new_empty(
        K, batch, weight.shape[-1], channels, dtype=torch.float32
    )
    grad_bias = grad_weight.new_empty(K, batch, channels)
    for k, conv in _directions(x, weight, bias, reverse):
        conv.grad_out = library.tokens(grad_out[:, k : k + 1])
        conv.grad_x = library.tokens(grad_x[k].unsqueeze(1))
        conv.grad_weight = grad_weight[k].data_ptr()
        conv.grad_bias = grad_bias[k].data_ptr()
        library.call('tm_conv_backward', conv)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    grad_weight = grad_weight.sum(1).mT.contiguous().to(weight.dtype)
    grad_bias = grad_bias.sum(1).to(bias_dtype)
    return (
        grad_x[0] if K == 1 else grad_x.sum(0).to(x.dtype),
        grad_weight.view(weight.shape),
        grad_bias.view(weight.shape[:-1]),
    )


def _forward_on_gpu(x, weight, bias, reverse):
    from . import causal_conv_triton

    out = _new_out(x, weight)
    causal_conv_triton.forward(x, weight, bias, reverse, out)
    return out


def _backward_on_gpu(grad_out, x, weight, bias, reverse):
    from . import causal_conv_triton

    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return grad_x, *causal_conv_triton.backward(
        grad_out, x, weight, bias, reverse, grad_x
    )


def _directions(x, weight, bias, reverse):
    """Yield each direction's number and the struct for its kernel call.

    It is the same struct each time, and points into tensors that live as long
    as this generator.
    """
    conv = library.Conv()
    conv.B, conv.L, conv.D = x.shape
    conv.width = weight.shape[-1]
    conv.threads = torch.get_num_threads()
    conv.x = library.tokens(x.unsqueeze(1))
    weight = weight.detach().float().mT.contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    for k, conv.reverse in enumerate(reverse):
        conv.weight = weight.data_ptr() + k * 4 * conv.width * conv.D
        if bias is not None:
            conv.bias = bias.data_ptr() + k * 4 * conv.D
        yield k, conv


def _fake_forward(x, weight, bias, reverse):
    return _new_out(x, weight)


def _fake_backward(grad_out, x, weight, bias, reverse):
    grad_bias = (weight if bias is None else bias).new_empty(weight.shape[:-1])
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        grad_bias,
    )


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.reverse = inputs
    ctx.save_for_backward(x, weight, bias)


def _autograd_backward(ctx, grad_out):
    x, weight, bias = ctx.saved_tensors
    if torch.is_grad_enabled():
        grads = transforms.gradients(
            lambda *tensors: _composed(*tensors, ctx.reverse),
            ctx.saved_tensors,
            ctx.needs_input_grad[:3],
            grad_out,
        )
        return *grads, None
    grads = torch.ops.transmamba_mm.causal_conv1d_silu_backward.default(
        grad_out, x, weight, bias, ctx.reverse
    )
    needed = zip(ctx.needs_input_grad, grads)
    return (*(grad if need else None for need, grad in needed), None)


_lib.impl('causal_conv1d_silu', _forward, 'CPU')
_lib.impl('causal_conv1d_silu_backward', _backward, 'CPU')
_lib.impl('causal_conv1d_silu', _forward_on_gpu, 'CUDA')
_lib.impl('causal_conv1d_silu_backward', _backward_on_gpu, 'CUDA')
torch.library.register_fake(
    'transmamba_mm::causal_conv1d_silu', _fake_forward, lib=_lib
)
torch.library.register_fake(
    'transmamba_mm::causal_conv1d_silu_backward', _fake_backward, lib=_lib
)
torch.library.register_autograd(
    'transmamba_mm::causal_conv1d_silu',
    _autograd_backward,
    setup_context=_setup_context,
    lib=_lib,
)


_op = torch.ops.transmamba_mm.causal_conv1d_silu.default


class _Conv(torch.autograd.Function):
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


@register_flops(torch.ops.transmamba_mm.causal_conv1d_silu)
def _flops(x, weight, *args, **kwargs) -> int:
    """Operations, counted as those of PyTorch's convolution are."""
    return 2 * x[0] * x[1] * math.prod(weight)
