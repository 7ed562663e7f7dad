# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Random scans, and their comparison with the float64 loop."""

import torch

from transmamba_mm.ops import multi_scan, scan_backends, selective_scan

# Largest error, relative to the largest magnitude of the float64 result.
OUT_TOL = 1e-6
GRAD_TOL = 5e-6
DOUBLE_TOL = 1e-12
HALF_OUT_TOL = 1e-2
HALF_GRAD_TOL = 2e-2

OPTIONAL = ('D', 'z', 'delta_bias')


def usable_backends() -> list[str]:
    """Those which compute float32 on the CPU here, but for the loop."""
    names = []
    for name, status in scan_backends().items():
        if not status.available or name == 'reference':
            continue
        try:
            selective_scan(**make_inputs(length=2), backend=name)
        except ValueError:  # not on the CPU
            continue
        names.append(name)
    return names


def make_inputs(
    batch=2,
    channels=8,
    length=17,
    N=4,
    groups=None,
    kinds=('var', 'var'),
    seed=0,
    dtype=torch.float32,
):
    """Random inputs, delta between about 0.01 and 1 after softplus."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        x = torch.randn(*shape, generator=rng, dtype=torch.float64)
        return x.to(dtype)

    shapes = {
        'var': (batch, N, length)
        if groups is None
        else (batch, groups, N, length),
        'const': (channels, N),
    }
    return {
        'u': normal(batch, channels, length),
        'delta': normal(batch, channels, length),
        'A': -torch.exp(normal(channels, N)),
        'B': normal(*shapes[kinds[0]]),
        'C': normal(*shapes[kinds[1]]),
        'D': normal(channels),
        'z': normal(batch, channels, length),
        'delta_bias': normal(channels) - 2,
    }


def make_multi(K, shared=(), groups=None, coefs='own', seed=0, **kwargs):
    """Random inputs of K directions.

    Args:
        K: number of directions.
        shared: names of the tensors that have no axis K.
        coefs: ``B`` and ``C`` are each direction's 'own', 'shared' by all,
            or 'const' in time.
    """
    kinds = ('const', 'const') if coefs == 'const' else ('var', 'var')
    parts = [
        make_inputs(
            groups=1 if groups is None and coefs == 'own' else groups,
            kinds=kinds,
            seed=seed + k,
            **kwargs,
        )
        for k in range(K)
    ]
    result = dict(parts[0])
    for name in set(result) - set(shared):
        if name not in 'BC':
            axis = 1 if name in ('u', 'delta', 'z') else 0
            result[name] = torch.stack([x[name] for x in parts], axis)
        elif coefs == 'own':
            result[name] = torch.cat([x[name] for x in parts], 1)
    return result


def run(inputs, dout, softplus=True, backend='auto', wrt=None, **settings):
    """Return out, last_state and gradients by name.

    Args:
        settings: of the scan; ``merge`` makes it a ``multi_scan``.
    """
    wrt = list(inputs) if wrt is None else wrt
    leaves = {
        k: v.detach().requires_grad_(k in wrt) for k, v in inputs.items()
    }
    scan = multi_scan if 'merge' in settings else selective_scan
    out, last = scan(
        **leaves,
        delta_softplus=softplus,
        return_last_state=True,
        backend=backend,
        **settings,
    )
    out.backward(dout)
    grads = {f'grad_{k}': leaves[k].grad for k in wrt}
    return {'out': out.detach(), 'last_state': last, **grads}


def oracle(inputs, dout, softplus=True, **settings):
    inputs = {k: v.double() for k, v in inputs.items()}
    want = run(
        inputs, dout.double(), softplus, backend='reference', **settings
    )
    # A loop of no steps does not touch its inputs.
    return {
        k: torch.zeros_like(inputs[k[5:]]) if v is None else v
        for k, v in want.items()
    }


def assert_close(got, want, out_tol=OUT_TOL, grad_tol=GRAD_TOL):
    assert got.keys() <= want.keys()
    for name, x in got.items():
        tol = grad_tol if name.startswith('grad') else out_tol
        ref = want[name].double()
        assert x.shape == ref.shape, name
        scale = ref.abs().max() if ref.numel() else 1.0
        error = (x.double() - ref).abs().max() if ref.numel() else 0.0
        assert error <= tol * max(scale, 1e-30), f'{name}: {error / scale}'


def check(inputs, softplus=True, seed=1, backend='auto', wrt=None, **settings):
    """Compare a backend with the loop."""
    rng = torch.Generator().manual_seed(seed)
    shape = list(inputs['u'].shape)
    if 'merge' in settings:
        K = len(settings['reverse'])
        shape = [shape[0], *shape[-2:]]
        if settings['merge'] == 'stack':
            shape.insert(1, K)
    dout = torch.randn(shape, generator=rng).to(inputs['u'].dtype)
    got = run(inputs, dout, softplus, backend, wrt, **settings)
    assert got['out'].shape == tuple(shape)
    assert_close(got, oracle(inputs, dout, softplus, **settings))
