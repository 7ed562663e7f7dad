# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Causal convolutions on GPUs, and their errors against float64.

As a script, it runs the cases in Triton's interpreter.
"""

import json

import torch
import torch.nn.functional as F

from transmamba_mm.ops import causal_conv, causal_conv1d_silu


def oracle(x, weight, bias, reverse):
    """(B, K, L, D) from the definition, one tap after another."""
    width, length = weight.shape[2], x.shape[1]
    outs = []
    for k, back in enumerate(reverse):
        y = x.flip(1) if back else x
        y = F.pad(y, (0, 0, width - 1, 0))
        y = sum(y[:, m : m + length] * weight[k, :, m] for m in range(width))
        y = y if bias is None else y + bias[k]
        y = y * torch.sigmoid(y)
        outs.append(y.flip(1) if back else y)
    return torch.stack(outs, 1)


# Parameters of problem().
CASES = {
    'one direction': dict(),
    'one direction, backwards': dict(reverse=[1], length=17, width=3),
    'axis of one direction': dict(axis=True, channels=65),
    'both ways': dict(reverse=[0, 1], length=37, batch=3),
    'both ways, as sliced': dict(reverse=[1, 0], strides='sliced', width=2),
    'channels first': dict(reverse=[0, 1], strides='channels first'),
    'three directions': dict(reverse=[1, 0, 1], width=3, channels=70),
    'four directions': dict(reverse=[0, 0, 1, 1], length=9),
    'without bias': dict(reverse=[0, 1], bias=False),
    'expanded gradient': dict(reverse=[0, 1], grad='expanded'),
    'gradient, channels first': dict(reverse=[0, 1], grad='channels first'),
    'one token': dict(reverse=[0, 1], length=1),
    'two tokens': dict(reverse=[1, 1], length=2, channels=1),
    'many programs': dict(reverse=[0, 1], length=70, channels=5, batch=1),
    'bfloat16': dict(reverse=[0, 1], dtype='bfloat16'),
    'all bfloat16': dict(
        reverse=[0, 1], dtype='bfloat16', weight_dtype='bfloat16', width=2
    ),
    'float16': dict(dtype='float16', strides='sliced', bias=False),
}


def problem(
    batch=2,
    length=19,
    channels=20,
    width=4,
    reverse=(0,),
    axis=None,
    bias=True,
    strides='contiguous',
    grad='contiguous',
    dtype='float32',
    weight_dtype='float32',
    device='cpu',
):
    """Tensors x, weight, bias, and the gradient of the output."""
    torch.manual_seed(0)
    K, many = len(reverse), ()
    if axis or K > 1:
        many = (K,)
    x = torch.randn(batch, length, 2 * channels)
    x = x.to(device, getattr(torch, dtype))
    if strides == 'sliced':
        x = x[..., channels:]
    else:
        x = x[..., :channels].contiguous()
    if strides == 'channels first':
        x = x.mT.contiguous().mT
    weight = torch.randn(*many, channels, width)
    shift = torch.randn(*many, channels) if bias else None
    g = torch.randn(batch, *many, length, channels).to(x)
    if grad == 'expanded':
        g = torch.ones_like(g[:1, ..., :1, :1]).expand(g.shape)
    elif grad == 'channels first':
        g = g.mT.contiguous().mT
    tensors = [
        None if t is None else t.to(device, getattr(torch, weight_dtype))
        for t in (weight, shift)
    ]
    return x, *tensors, g


def by_kernels(x, weight, bias, reverse, grad):
    """Output and gradients, from what runs on GPUs."""
    out = causal_conv._forward_on_gpu(x, weight, bias, reverse)
    fake = causal_conv._fake_forward(x, weight, bias, reverse)
    assert out.stride() == fake.stride()
    grads = causal_conv._backward_on_gpu(grad, x, weight, bias, reverse)
    fakes = causal_conv._fake_backward(grad, x, weight, bias, reverse)
    for got, fake in zip(grads, fakes):
        assert got.dtype == fake.dtype and got.shape == fake.shape
        assert got.stride() == fake.stride()
    return out, *grads


def by_public_function(x, weight, bias, reverse, grad):
    """The same, by autograd."""
    inputs = [t for t in (x, weight, bias) if t is not None]
    inputs = [t.detach().requires_grad_() for t in inputs]
    reverse = [bool(back) for back in reverse]
    reverse = reverse if weight.dim() == 3 else reverse[0]
    out = causal_conv1d_silu(*inputs[:2], *inputs[2:], reverse=reverse)
    grads = torch.autograd.grad(out, inputs, grad)
    return out.detach(), *grads


def errors(run, reverse=(0,), **case):
    """Largest error of each result over the largest value of the truth."""
    x, weight, bias, grad = problem(reverse=reverse, **case)
    one = weight.dim() == 2
    wide = [
        t.detach().double().cpu()
        for t in (x, weight, bias, grad)
        if t is not None
    ]
    *inputs, wide_grad = wide
    inputs = [t.requires_grad_() for t in inputs]
    stacked = [t.unsqueeze(0) if one else t for t in inputs[1:]]
    stacked += [None] * (2 - len(stacked))
    want = oracle(inputs[0], *stacked, reverse)
    want = want.squeeze(1) if one else want
    truth = [want, *torch.autograd.grad(want, inputs, wide_grad)]
    found = run(x, weight, bias, list(reverse), grad)
    blocks = [found[0]] if one else found[0].unbind(1)
    assert all(block.is_contiguous() for block in blocks)
    results = {}
    names = ('out', 'x', 'weight', 'bias')
    for name, like, got, right in zip(
        names, (x, x, weight, bias), found, truth
    ):
        assert got.shape == right.shape and got.dtype == like.dtype, name
        error = (got.double().cpu() - right).abs().max() / right.abs().max()
        results[name] = float(error.nan_to_num(nan=float('inf')))
    return results


def limit(name, dtype='float32', weight_dtype='float32', **case):
    """Largest error to put up with."""
    low = weight_dtype if name in ('weight', 'bias') else dtype
    return {'float32': 3e-6, 'float16': 2e-3, 'bfloat16': 1e-2}[low]


def not_finite(value):
    """Tell if what is not finite is so in the truth: output, gradient of x."""
    x, weight, bias, grad = problem(length=21, reverse=(0, 1))
    x[0, 9, 3] = value
    out, grad_x, *_ = by_kernels(x, weight, bias, [0, 1], grad)
    wide = x.double().requires_grad_()
    want = oracle(wide, weight.double(), bias.double(), (0, 1))
    (right,) = torch.autograd.grad(want, wide, grad.double())
    return [
        torch.equal(a.isfinite(), b.isfinite())
        for a, b in ((out, want), (grad_x, right))
    ]


def empty(**sizes):
    """Sum of the gradients of a problem of size 0."""
    x, weight, bias, grad = problem(reverse=(0, 1), **sizes)
    _, *grads = by_kernels(x, weight, bias, [0, 1], grad)
    assert [g.shape for g in grads] == [x.shape, weight.shape, bias.shape]
    return sum(float(g.abs().sum()) for g in grads)


def interpret():
    """Run in the process that interprets the kernels."""
    from transmamba_mm.ops import causal_conv_triton

    results = {name: errors(by_kernels, **CASES[name]) for name in CASES}
    results['not finite'] = [not_finite(float(v)) for v in ('nan', 'inf')]
    results['empty'] = [empty(length=0), empty(batch=0)]
    causal_conv_triton.ENOUGH = 1  # one program has the whole walk
    results['long programs'] = errors(by_kernels, **CASES['many programs'])
    print('RESULTS', json.dumps(results))


if __name__ == '__main__':
    interpret()
