# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Causal depth-wise convolution over tokens, fused with SiLU.

The step before the scan in Mamba, Vim and VideoMamba.  On CPU a C++ kernel
(:mod:`.native`) does convolution, bias and SiLU in one pass over
channels-last tokens, forward and backward; elsewhere, or without the kernel,
PyTorch does them one after another.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .flops import register_flops
from .native import library

_DTYPES = library.DTYPES
_WIDTHS = (2, 3, 4)  # those of csrc/conv.h

_lib = torch.library.Library('transmamba_mm', 'FRAGMENT')
_lib.define(
    'causal_conv1d_silu(Tensor x, Tensor weight, Tensor? bias, bool reverse)'
    ' -> Tensor'
)
_lib.define(
    'causal_conv1d_silu_backward(Tensor grad_out, Tensor x, Tensor weight,'
    ' Tensor? bias, bool reverse) -> (Tensor, Tensor, Tensor)'
)


def causal_conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    reverse: bool = False,
) -> Tensor:
    """Convolve each channel with the tokens before it, then apply SiLU.

    ``out[:, t] = silu(bias + sum over k of weight[:, k] * x[:, t - (width - 1)
    + k])``, with zeros before the first token.  The CPU kernel serves widths
    2 to 4 of float32, bfloat16 and float16 tokens, with sums in float32.

    Args:
        x: tokens, (B, L, D), any strides; channels-last is fastest.
        weight: (D, width).  ``conv1d.weight.squeeze(1)`` of the depth-wise
            convolution of an official checkpoint.
        bias: (D,).  Default None.
        reverse: look at the tokens after each one instead of those before,
            that is walk backwards.  Default False.

    Returns:
        Tensor: (B, L, D), contiguous, in ``x.dtype``.

    Raises:
        ValueError: if a shape or device does not fit.
    """
    _check(x, weight, bias)
    if (
        x.device.type == 'cpu'
        and x.dtype in _DTYPES
        and weight.shape[1] in _WIDTHS
        and library.unavailable() is None
    ):
        return torch.ops.transmamba_mm.causal_conv1d_silu(
            x, weight, bias, reverse
        )
    return _composed(x, weight, bias, reverse)


def _check(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> None:
    if x.dim() != 3:
        raise ValueError(f'x: expected shape (B, L, D), got {tuple(x.shape)}')
    channels = x.shape[2]
    if weight.dim() != 2 or weight.shape[0] != channels:
        raise ValueError(
            f'weight: expected shape (D, width) = ({channels}, width), got '
            f'{tuple(weight.shape)}'
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(
            f'bias: expected shape (D,) = ({channels},), got '
            f'{tuple(bias.shape)}'
        )
    for name, tensor in (('weight', weight), ('bias', bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f'{name}: is on {tensor.device}, but x is on {x.device}'
            )


def _composed(x, weight, bias, reverse):
    """The same in PyTorch operations."""
    width = weight.shape[1]
    weight = weight.to(x.dtype).unsqueeze(1)
    bias = None if bias is None else bias.to(x.dtype)
    x = x.flip(1) if reverse else x
    x = F.pad(x.transpose(1, 2), (width - 1, 0))
    out = F.silu(F.conv1d(x, weight, bias, groups=weight.shape[0]))
    out = out.transpose(1, 2)
    return (out.flip(1) if reverse else out).contiguous()


def _forward(x, weight, bias, reverse):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    conv, _keep = _arguments(x, weight, bias, reverse)
    conv.out = library.tokens(out.unsqueeze(1))
    library.call('tm_conv_forward', conv)
    return out


def _backward(grad_out, x, weight, bias, reverse):
    batch, _, channels = x.shape
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_weight = weight.new_empty(
        batch, weight.shape[1], channels, dtype=torch.float32
    )
    grad_bias = grad_weight.new_empty(batch, channels)
    conv, _keep = _arguments(x, weight, bias, reverse)
    conv.grad_out = library.tokens(grad_out.unsqueeze(1))
    conv.grad_x = library.tokens(grad_x.unsqueeze(1))
    conv.grad_weight = grad_weight.data_ptr()
    conv.grad_bias = grad_bias.data_ptr()
    library.call('tm_conv_backward', conv)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return (
        grad_x,
        grad_weight.sum(0).t().contiguous().to(weight.dtype),
        grad_bias.sum(0).to(bias_dtype),
    )


def _arguments(x, weight, bias, reverse):
    """The struct for the kernel, and the tensors which it points into."""
    conv = library.Conv()
    conv.B, conv.L, conv.D = x.shape
    conv.width, conv.reverse = weight.shape[1], reverse
    conv.threads = torch.get_num_threads()
    conv.x = library.tokens(x.unsqueeze(1))
    weight = weight.detach().float().t().contiguous()
    conv.weight = weight.data_ptr()
    if bias is not None:
        bias = bias.detach().float().contiguous()
        conv.bias = bias.data_ptr()
    return conv, (weight, bias)


def _fake_forward(x, weight, bias, reverse):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_backward(grad_out, x, weight, bias, reverse):
    grad_bias = (weight if bias is None else bias).new_empty(x.shape[2])
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
    grads = torch.ops.transmamba_mm.causal_conv1d_silu_backward(
        grad_out, x, weight, bias, ctx.reverse
    )
    needed = zip(ctx.needs_input_grad, grads)
    return (*(grad if need else None for need, grad in needed), None)


_lib.impl('causal_conv1d_silu', _forward, 'CPU')
_lib.impl('causal_conv1d_silu_backward', _backward, 'CPU')
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


@register_flops(torch.ops.transmamba_mm.causal_conv1d_silu)
def _flops(x, weight, *args, **kwargs) -> int:
    """Operations, counted as those of PyTorch's convolution are."""
    return 2 * x[0] * x[1] * weight[0] * weight[1]
