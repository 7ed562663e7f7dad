# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Scans by backend 'triton', and their errors against a loop in float64.

As a script, it runs the cases in Triton's interpreter, which must be switched
on before the kernels are defined.
"""

import json

import torch
import torch.nn.functional as F

from transmamba_mm.ops.backends import triton_scan, triton_tiling
from transmamba_mm.ops.backends.problem import TENSORS, ScanProblem

NAMES = TENSORS


def of(x, k):
    """What direction k has of a tensor."""
    if x is None:
        return None
    axis = 1 if x.dim() > 3 else 0
    return x.select(axis, min(k, x.shape[axis] - 1))


def oracle(p):
    """Straight from the definition of ScanProblem, in float64."""
    batch, K, L, D, N = p.sizes
    ys, states = [], []
    for k in range(K):
        u, delta, A, B, C, skip, z, bias = (of(x, k) for x in p.tensors)
        h, y = u.new_zeros(batch, D, N), [None] * L
        for t in range(L):
            s = L - 1 - t if p.reverse[k] else t
            at = s if p.orders is None else int(p.orders[k, s])
            q = t if p.by_step else at
            dt = delta[:, q] if bias is None else delta[:, q] + bias
            dt = F.softplus(dt) if p.delta_softplus else dt
            B_q, C_q = (
                x[:, :, q].repeat_interleave(D // x.shape[1], 1)
                for x in (B, C)
            )
            h = torch.exp(dt[..., None] * A) * h
            h = h + (dt * u[:, at])[..., None] * B_q
            y[at] = (h * C_q).sum(-1)
            if skip is not None:
                y[at] = y[at] + skip * u[:, at]
            if z is not None:
                y[at] = y[at] * F.silu(z[:, at])
        ys.append(torch.stack(y, 1))
        states.append(h)
    out = torch.stack(ys, 1)
    if p.merge:
        out = out.sum(1, keepdim=True)
    return out, torch.stack(states, 1)


def problem(
    batch=1,
    K=1,
    L=11,
    D=8,
    N=4,
    G=1,
    shared=(),
    without=(),
    dtype='float32',
    softplus=True,
    order=False,
    reverse=None,
    by_step=False,
    merge=False,
    channels_first=False,
    device='cpu',
):
    """Random problem; ``shared`` tensors are the same in all directions."""
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)

    def tokens(name):
        k = 1 if name in shared else K
        if channels_first:
            return torch.randn(batch, k, D, L).transpose(2, 3)
        return torch.randn(batch, k, L, D)

    def weights(name):
        k = 1 if name in shared else K
        # As sliced from a projection that has more outputs.
        return torch.randn(batch, k, G, L, N + 3)[..., 3:]

    tensors = {
        'u': tokens('u'),
        'delta': 1.5 * tokens('delta') - 1,
        'A': -torch.rand(1 if 'A' in shared else K, D, N) * 4,
        'B': weights('B'),
        'C': weights('C'),
        'D': torch.randn(1 if 'D' in shared else K, D),
        'z': tokens('z'),
        'delta_bias': torch.randn(1 if 'delta_bias' in shared else K, D),
    }
    if not softplus:
        tensors['delta'] = tensors['delta'].abs()
        tensors['delta_bias'] = tensors['delta_bias'].abs()
    tensors = {
        name: None
        if name in without
        else x.to(device, torch.float32 if x.dim() < 4 else dtype)
        for name, x in tensors.items()
    }
    orders = None
    if order:
        orders = torch.stack([torch.randperm(L) for _ in range(K)])
        orders = orders.int().to(device)
    return ScanProblem(
        **tensors,
        delta_softplus=softplus,
        orders=orders,
        reverse=tuple(reverse or [False] * K),
        by_step=by_step,
        merge=merge,
    )


def errors(p, needs=(True,) * 8, spread=False):
    """Largest error of each result over the largest value of the truth."""
    wide = [
        None if x is None else x.double().cpu().requires_grad_()
        for x in p.tensors
    ]
    orders = None if p.orders is None else p.orders.cpu()
    truth = p._replace(**dict(zip(NAMES, wide)), orders=orders)
    out, last = oracle(truth)
    grad = torch.randn(out.shape, dtype=torch.float64)
    if spread:  # as the gradient of a sum: all strides are 0
        grad = torch.ones((), dtype=torch.float64).expand(out.shape)
    grad_out = grad.to(p.u.device, p.u.dtype)
    if spread:
        grad_out = torch.ones((), dtype=p.u.dtype, device=p.u.device)
        grad_out = grad_out.expand(out.shape)
    grads = torch.autograd.grad(
        (out * grad_out.cpu().double()).sum(),
        [x for x in wide if x is not None],
    )
    found, found_last, states = triton_scan.forward(p, keep=True)
    found_grads = triton_scan.backward(p, states, grad_out, needs)
    assert states.shape == triton_scan.states_shape(p)
    assert found.dtype == p.u.dtype and found_last.dtype == torch.float32
    pairs = {'out': (found, out), 'last_state': (found_last, last)}
    grads = iter(grads)
    for name, x, found_grad, need in zip(NAMES, p.tensors, found_grads, needs):
        if x is None:
            assert found_grad is None
            continue
        expected = next(grads)
        if not need:
            assert found_grad is None
            continue
        assert found_grad.dtype == x.dtype
        pairs[name] = found_grad, expected
    again, _, nothing = triton_scan.forward(p, keep=False)
    assert nothing.shape == (0,) and torch.equal(again, found)
    results = {}
    for name, (x, y) in pairs.items():
        assert x.shape == y.shape and x.is_contiguous(), name
        error = (x.double().cpu() - y).abs().max()
        error /= y.abs().max().clamp_min(1e-6)
        results[name] = float(error.nan_to_num(nan=float('inf')))
    return results


ALL_SHARED = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
# Parameters of problem() and, after '/', errors().
CASES = {
    'plain': dict(L=11, D=8, N=4),
    'whole chunks': dict(L=8, D=16, N=1),
    'two levels of chunks': dict(L=11, D=20, N=16),
    'groups': dict(batch=2, L=9, D=12, N=3, G=2, channels_first=True),
    'only what is needed': dict(
        L=5, D=16, N=3, without=('D', 'z', 'delta_bias'), softplus=False
    ),
    'no gradient of z and B': dict(
        L=5, D=8, N=1, needs=(1, 0, 1, 0, 1, 1, 0, 1)
    ),
    'four directions, merged': dict(
        K=4,
        L=6,
        D=8,
        N=1,
        shared=('u', 'z'),
        order=True,
        reverse=(0, 1, 0, 1),
        by_step=True,
        merge=True,
    ),
    'two directions, stacked': dict(
        K=2, L=5, D=8, N=3, shared=ALL_SHARED, reverse=(0, 1), spread=True
    ),
    'ordered': dict(
        batch=2, K=2, L=9, D=8, N=2, shared=('B', 'A'), order=True, merge=True
    ),
    'bfloat16': dict(
        K=2, L=9, D=8, N=4, dtype='bfloat16', shared=('u',), merge=True
    ),
    'one step': dict(L=1, D=8, N=4, dtype='float16'),
    'two blocks': dict(L=5, D=36, N=1, G=1),
}
# Cut into segments of at least two steps, as if the GPU were large.
SEGMENTS = {
    'segments': dict(batch=2, L=37, D=20, N=5),
    'segments, N = 1': dict(
        K=2, L=50, D=16, N=1, shared=('u', 'A'), reverse=(0, 1), merge=True
    ),
    'segments in two orders': dict(
        K=2, L=33, D=8, N=16, order=True, by_step=True, dtype='bfloat16'
    ),
    'segments of whole chunks': dict(L=64, D=8, N=4, without=('z', 'D')),
}


def run_case(case):
    case = dict(case)
    keep = {k: case.pop(k) for k in ('needs', 'spread') if k in case}
    return errors(problem(**case), **keep)


def not_finite(name, value):
    """Where results are not finite, ours and the truth's."""
    p = problem(L=5, D=8, N=3, G=2)
    getattr(p, name)[0, 0, ..., 2, 1] = value
    wide = [x.double().requires_grad_() for x in p.tensors]
    truth = oracle(p._replace(**dict(zip(NAMES, wide))))
    grads = torch.autograd.grad(truth[0].sum(), wide)
    out, last, states = triton_scan.forward(p, keep=True)
    found = triton_scan.backward(p, states, torch.ones_like(out), (True,) * 8)
    names = ('out', 'last_state', *NAMES)
    return [
        name
        for name, x, y in zip(names, (out, last, *found), (*truth, *grads))
        if not torch.equal(x.isfinite(), y.isfinite())
    ]


def empty(**sizes):
    """Shapes of the results of a problem of size 0, and their sums."""
    p = problem(**sizes)
    out, last, states = triton_scan.forward(p, keep=True)
    grads = triton_scan.backward(p, states, out, (True,) * 8)
    assert states.shape == triton_scan.states_shape(p)
    assert all(x.shape == y.shape for x, y in zip(grads, p.tensors))
    return sum(float(x.abs().sum()) for x in (last, *grads))


def interpret():
    """Run in the process that interprets the kernels."""
    results = {name: run_case(case) for name, case in CASES.items()}
    results['not finite'] = {
        f'{name} = {value}': not_finite(name, float(value))
        for name, value in (('u', 'nan'), ('B', 'inf'), ('z', '-inf'))
    }
    triton_tiling.SHORTEST = 2
    for name, case in SEGMENTS.items():
        p = problem(**case)
        t = triton_tiling.of_problem(p)
        assert min(triton_tiling.segments(p, t, x) for x in t.resident) > 1
        results[name] = run_case(case)
    triton_scan.FURTHEST = 0  # offsets do not fit in 32 bits
    results['wide'] = run_case(CASES['four directions, merged'])
    results['empty'] = [empty(L=0, K=2), empty(batch=0)]
    print('RESULTS', json.dumps(results))


if __name__ == '__main__':
    interpret()
