# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend 'triton' on a GPU, against a loop in float64."""

import pytest
import torch
from triton_cases import ALL_SHARED, CASES, problem, run_case

from transmamba_mm.ops.backends import triton_scan

# Sizes that fill a GPU, and every branch of the kernels.
GPU_CASES = {
    'vim': dict(batch=4, L=197, D=384, N=16, K=2, reverse=(0, 1), merge=True),
    'vmamba': dict(
        batch=2,
        L=196,
        D=96,
        N=1,
        K=4,
        shared=('u', 'z'),
        order=True,
        reverse=(0, 1, 0, 1),
        merge=True,
    ),
    'plainmamba': dict(
        batch=2,
        L=64,
        D=160,
        N=16,
        K=4,
        shared=ALL_SHARED,
        order=True,
        by_step=True,
        merge=True,
    ),
    'long': dict(L=1031, D=40, N=16),
    'groups': dict(batch=2, L=65, D=144, N=4, G=3, channels_first=True),
    'odd': dict(L=63, D=77, N=5, without=('z',)),
    'bare': dict(
        L=50, D=64, N=8, without=('D', 'z', 'delta_bias'), softplus=False
    ),
    'many states': dict(L=37, D=50, N=64),
    'more states': dict(L=20, D=20, N=200, spread=True),
    'wide N = 1': dict(batch=16, L=33, D=512, N=1, K=8),
    'part of the gradients': dict(
        L=30, D=64, N=16, needs=(0, 1, 0, 1, 0, 0, 1, 0)
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('name', GPU_CASES)
def test_on_gpu(name, dtype, record_property):
    case = dict(GPU_CASES[name], dtype=dtype, device='cuda')
    for what, error in run_case(case).items():
        record_property(f'scan, {dtype}: {what}', error)
        wide = what in ('last_state', 'A', 'D', 'delta_bias')
        low = dtype != 'float32' and not wide
        assert error <= (2e-2 if low else 2e-5), what


@pytest.mark.gpu
@pytest.mark.parametrize('name', CASES)
def test_small_cases_on_gpu(name):
    case = dict(CASES[name], device='cuda')
    low = case.get('dtype')
    for what, error in run_case(case).items():
        assert error <= (2e-2 if low else 2e-5), what


@pytest.mark.gpu
def test_results_do_not_change_on_gpu():
    p = problem(batch=8, L=300, D=256, N=16, K=2, merge=True, device='cuda')
    needs = (True,) * 8
    runs = []
    for _ in range(3):
        out, last, states = triton_scan.forward(p, keep=True)
        runs.append((out, last, *triton_scan.backward(p, states, out, needs)))
    for run in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(run, runs[0]))


@pytest.mark.gpu
@pytest.mark.parametrize('K', [1, 3])
def test_public_operators_on_gpu(K):
    """Same as the reference backend in float64 on the CPU."""
    from transmamba_mm.ops import multi_scan, selective_scan

    many = (K,) if K > 1 else ()
    shapes = dict(
        u=(2, 48, 35),
        delta=(2, *many, 48, 35),
        A=(*many, 48, 16),
        B=(2, K, 16, 35),
        C=(2, K, 16, 35),
        D=(*many, 48),
        z=(2, 48, 35),
        delta_bias=(*many, 48),
    )
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs['A'] = -inputs['A'].abs()
    grad = torch.randn(2, 48, 35)
    results = {}
    for backend, device, dtype in (
        ('triton', 'cuda', torch.float32),
        ('reference', 'cpu', torch.float64),
    ):
        order = torch.stack([torch.arange(35).roll(k + 1) for k in range(K)])
        order = order.to(device)
        tensors = {
            name: x.to(device, dtype).requires_grad_()
            for name, x in inputs.items()
        }
        settings = dict(delta_softplus=True, backend=backend)
        if K > 1:
            out = multi_scan(**tensors, orders=order, **settings)
        else:
            out = selective_scan(**tensors, order=order[0], **settings)
        out.backward(grad.to(device, dtype))
        results[backend] = [out] + [x.grad for x in tensors.values()]
    for x, y in zip(results['triton'], results['reference']):
        error = (x.double().cpu() - y).abs().max() / y.abs().max()
        assert error <= 2e-5
