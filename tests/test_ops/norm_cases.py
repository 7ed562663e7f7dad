# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""RMS normalisation on GPUs, and its errors against float64.

As a script, it runs the cases in Triton's interpreter.
"""

import json

import torch

from transmamba_mm.ops import rms_norm

# Parameters of problem().
CASES = {
    'narrow': dict(shape=(5, 3)),
    'one row': dict(shape=(7,)),
    'one column': dict(shape=(3, 1)),
    'tokens': dict(shape=(2, 19, 192)),
    'whole tiles': dict(shape=(4, 4, 128)),
    'wide': dict(shape=(3, 2500)),
    'widest': dict(shape=(2, 8192)),
    'large': dict(shape=(3, 40), scale=1e3),
    'small': dict(shape=(3, 40), scale=1e-3),
    'strided': dict(shape=(2, 6, 40), strided=True),
    'expanded gradient': dict(shape=(2, 6, 40), expanded=True),
    'bfloat16': dict(shape=(2, 9, 48), dtype='bfloat16'),
    'float16': dict(shape=(9, 48), dtype='float16', weight_dtype='float16'),
    'weight in bfloat16': dict(shape=(9, 48), weight_dtype='bfloat16'),
}


def problem(
    shape,
    scale=1.0,
    strided=False,
    expanded=False,
    dtype='float32',
    weight_dtype='float32',
    device='cpu',
):
    """Tensors x, weight, and the gradient of the output."""
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    x, grad = (torch.randn(shape).to(device, dtype) for _ in range(2))
    x *= scale
    weight = torch.randn(shape[-1]).to(device, getattr(torch, weight_dtype))
    if strided:
        x, grad = (t.mT.contiguous().mT for t in (x, grad))
        weight = torch.stack([weight, weight], 1)[:, 0]
    if expanded:
        grad = torch.ones((), device=device, dtype=dtype).expand(shape)
    return x, weight, grad


def by_kernels(x, weight, grad):
    """Output and gradients, from the kernels themselves."""
    from transmamba_mm.ops import rms_norm_triton

    out, rstd = rms_norm_triton.forward(x, weight, 1e-5)
    assert rstd.shape == x.shape[:-1] and rstd.dtype == torch.float32
    return out, *rms_norm_triton.backward(grad, x, weight, rstd)


def by_public_function(x, weight, grad):
    """The same, by autograd."""
    x, weight = (t.detach().requires_grad_() for t in (x, weight))
    out = rms_norm(x, weight, 1e-5)
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad)


def errors(run, **case):
    """Largest error of each result over the largest value of the truth."""
    x, weight, grad = problem(**case)
    wide = [t.double().cpu().requires_grad_() for t in (x, weight)]
    want = wide[0].square().mean(-1, keepdim=True) + 1e-5
    want = wide[0] / torch.sqrt(want) * wide[1]
    truth = [want, *torch.autograd.grad(want, wide, grad.double().cpu())]
    results = {}
    for name, like, got, right in zip(
        ('out', 'x', 'weight'), (x, x, weight), run(x, weight, grad), truth
    ):
        assert got.shape == right.shape and got.dtype == like.dtype, name
        scale = right.abs().max()
        if name == 'x':  # in one column it all but cancels
            scale = scale.clamp_min(1 / case.get('scale', 1.0))
        error = (got.double().cpu() - right).abs().max() / scale
        results[name] = float(error.nan_to_num(nan=float('inf')))
    return results


def limit(name, dtype='float32', weight_dtype='float32', **case):
    """Largest error to put up with."""
    low = weight_dtype if name == 'weight' else dtype
    return {'float32': 3e-6, 'float16': 2e-3, 'bfloat16': 1e-2}[low]


def empty():
    """Sum of the weight's gradient over no rows."""
    x, weight, grad = problem((0, 5))
    out, grad_x, grad_weight = by_kernels(x, weight, grad)
    assert out.shape == grad_x.shape == x.shape
    return float(grad_weight.abs().sum())


def interpret():
    """Run in the process that interprets the kernels."""
    from transmamba_mm.ops import rms_norm_triton

    results = {name: errors(by_kernels, **CASES[name]) for name in CASES}
    results['empty'] = empty()
    rms_norm_triton.MOST_PROGRAMS = 2
    results['several tiles a program'] = errors(by_kernels, shape=(55, 192))
    print('RESULTS', json.dumps(results))


if __name__ == '__main__':
    interpret()
