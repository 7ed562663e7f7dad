# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend 'mamba_ssm' on a stand-in for its extension module.

The stand-in checks what the CUDA functions check about their arguments, and
computes on the CPU.
"""

import sys
import types
from contextlib import contextmanager

import pytest
import torch
from scan_cases import (
    HALF_GRAD_TOL,
    HALF_OUT_TOL,
    assert_close,
    check,
    make_inputs,
    make_multi,
    oracle,
    run,
)

from transmamba_mm.ops import (
    dispatch,
    scan_backends,
    selected_backend,
    selective_scan,
)
from transmamba_mm.ops.backends import mamba_ssm_cuda, race

CHUNK = 16  # steps between kept states; 2048 in the kernels


def check_arguments(u, delta, A, B, C, D, z, delta_bias):
    """What fwd and bwd of selective_scan.cpp require."""
    batch, channels, length = u.shape
    N = A.shape[1]
    assert u.dtype in (torch.float32, torch.bfloat16, torch.float16)
    assert N <= 256 and A.dtype == torch.float32
    assert A.shape == (channels, N)
    for x in (u, delta, z):
        if x is not None:
            assert x.shape == u.shape and x.dtype == u.dtype
            assert x.stride(-1) == 1 or length == 1
    for x in (B, C):
        assert x.shape == (batch, B.shape[1], N, length)
        assert x.dtype == u.dtype
        assert x.stride(-1) == 1 or length == 1
    for x in (D, delta_bias):
        if x is not None:
            assert x.shape == (channels,) and x.dtype == torch.float32
            assert x.stride(-1) == 1 or channels == 1


def fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    check_arguments(u, delta, A, B, C, D, z, delta_bias)
    assert isinstance(delta_softplus, bool)

    def scan(z):
        return selective_scan(
            u,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            delta_softplus,
            True,
            backend='torch',
        )

    out, last = scan(None)
    batch, channels, N = last.shape
    chunks = -(-u.shape[2] // CHUNK)
    x = torch.full((batch, channels, chunks, 2 * N), float('nan'))
    x[:, :, -1, 1::2] = last
    result = [out.contiguous(), x]
    return result if z is None else [*result, scan(z)[0].contiguous()]


def bwd(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    dout,
    x,
    out,
    dz,
    delta_softplus,
    recompute_out_z,
):
    check_arguments(u, delta, A, B, C, D, z, delta_bias)
    assert dout.shape == u.shape and dout.dtype == u.dtype
    assert dout.stride(-1) == 1 or u.shape[2] == 1
    assert x.is_contiguous() and x.dtype == torch.float32
    shape = (*u.shape[:2], -(-u.shape[2] // CHUNK), 2 * A.shape[1])
    assert x.shape == shape
    assert dz is None and recompute_out_z is False
    want = fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if z is not None:
        assert torch.equal(out, want[0])
    given = [u, delta, A, B, C, D, z, delta_bias]
    leaves = [
        None if y is None else y.detach().clone().requires_grad_()
        for y in given
    ]
    with torch.enable_grad():
        y = selective_scan(*leaves, delta_softplus, backend='torch')
    needed = [y for y in leaves if y is not None]
    grads = iter(torch.autograd.grad(y, needed, dout))
    du, ddelta, dA, dB, dC, dD, dz, dbias = (
        None if y is None else next(grads) for y in leaves
    )
    # Undefined tensors of C++ are None here.
    result = [du, ddelta, dA, dB, dC, dD, dbias]
    return result if z is None else [*result, dz]


@pytest.fixture
def cuda(monkeypatch):
    """A machine with a GPU, as far as the choice of a backend can tell."""
    module = types.ModuleType(mamba_ssm_cuda.MODULE)
    # The calls leave the operator's implementation, where autograd is off.
    module.fwd, module.bwd = in_thread(fwd), in_thread(bwd)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(mamba_ssm_cuda, 'CHUNK', CHUNK)
    monkeypatch.setattr(
        mamba_ssm_cuda,
        'supports',
        lambda device, dtype: dtype != torch.float64,
    )
    dispatch.forget_probes()
    yield module
    monkeypatch.undo()
    dispatch.forget_probes()


def in_thread(function):
    """Run in a thread of its own, which has the usual dispatch keys."""
    from concurrent.futures import ThreadPoolExecutor

    def call(*args):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *args).result()

    return call


@pytest.mark.parametrize('groups', [None, 1, 2])
@pytest.mark.parametrize('absent', ['', 'D', 'z', 'delta_bias'])
@pytest.mark.parametrize('length', [1, 17])
def test_equals_the_loop(length, absent, groups, cuda):
    inputs = make_inputs(length=length, groups=groups)
    inputs.pop(absent, None)
    check(inputs, backend='mamba_ssm')


def test_without_softplus(cuda):
    inputs = make_inputs()
    inputs['delta'] = inputs['delta'].abs()
    del inputs['delta_bias']
    check(inputs, softplus=False, backend='mamba_ssm')


@pytest.mark.parametrize('by_step', [False, True])
@pytest.mark.parametrize('merge', ['sum', 'stack'])
def test_directions(merge, by_step, cuda):
    inputs = make_multi(2, ('u', 'A'), 2)
    orders = torch.stack([torch.randperm(17) for _ in range(2)])
    check(
        inputs,
        backend='mamba_ssm',
        orders=orders,
        reverse=[False, True],
        by_step=by_step,
        merge=merge,
    )


def test_channels_last_inputs(cuda):
    inputs = make_inputs(groups=2)
    for name in ('u', 'delta', 'z', 'B', 'C'):
        inputs[name] = inputs[name].mT.contiguous().mT
    check(inputs, backend='mamba_ssm')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('mixed', [False, True])
def test_half_precision(mixed, dtype, cuda):
    inputs = make_inputs(groups=2)
    names = ['u', 'delta', 'C', 'z'] + ['B'] * (not mixed)
    for name in names:
        inputs[name] = inputs[name].to(dtype)
    inputs['D'] = inputs['D'].to(dtype)
    dout = torch.randn(inputs['u'].shape).to(dtype)
    got = run(inputs, dout, backend='mamba_ssm')
    assert got['out'].dtype == dtype
    assert all(got[f'grad_{k}'].dtype == v.dtype for k, v in inputs.items())
    assert_close(got, oracle(inputs, dout), HALF_OUT_TOL, HALF_GRAD_TOL)


def test_gradient_of_one_input_alone(cuda):
    for name in make_inputs():
        check(make_inputs(), backend='mamba_ssm', wrt=[name])


@pytest.mark.parametrize(
    'inputs, message',
    [
        (make_inputs(kinds=('const', 'var')), 'constant in time'),
        (make_inputs(N=257), 'N = 257 is more than 256'),
    ],
)
def test_what_it_refuses(inputs, message, cuda, monkeypatch):
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs, backend='mamba_ssm')
    monkeypatch.setattr(
        dispatch,
        '_MODULES',
        {k: v for k, v in dispatch._MODULES.items() if k != 'cpu'},
    )
    dispatch.forget_probes()
    assert selected_backend() == 'mamba_ssm'
    assert torch.isfinite(selective_scan(**inputs, delta_softplus=True)).all()


def test_it_is_available_where_the_extension_is(cuda, monkeypatch):
    assert scan_backends()['mamba_ssm'] == (True, '')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 'no CUDA device' in scan_backends()['mamba_ssm'].reason


def test_mamba_ssm_without_its_extension(cuda, monkeypatch):
    """Recent releases leave ``selective_scan_cuda = None``."""
    package = types.ModuleType('mamba_ssm')
    package.selective_scan_cuda = None
    monkeypatch.setitem(sys.modules, 'mamba_ssm', package)
    monkeypatch.delitem(sys.modules, mamba_ssm_cuda.MODULE)
    reason = scan_backends()['mamba_ssm'].reason
    assert 'there is no module selective_scan_cuda; build' in reason
    with pytest.raises(RuntimeError, match='unavailable: there is no module'):
        selective_scan(**make_inputs(), backend='mamba_ssm')


def test_an_extension_that_cannot_be_loaded(cuda, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, mamba_ssm_cuda.MODULE)
    (tmp_path / 'selective_scan_cuda.py').write_text(
        'raise ImportError("undefined symbol: _ZN3c10")'
    )
    monkeypatch.syspath_prepend(tmp_path)
    reason = scan_backends()['mamba_ssm'].reason
    assert 'cannot be imported (ImportError: undefined symbol' in reason
    assert 'rebuild mamba-ssm' in reason


def test_the_race_is_run_once_per_problem(monkeypatch):
    times = {'a': [3.0, 0.1], 'b': [2.0, 0.5]}
    calls = []

    def seconds(module, p, keep):
        calls.append((module.__name__, keep))
        return times[module.__name__][keep]

    monkeypatch.setattr(race, '_winners', {})
    monkeypatch.setattr(race, '_seconds', seconds)
    monkeypatch.setattr(
        torch.cuda, 'is_current_stream_capturing', lambda: capturing
    )
    current = []

    @contextmanager
    def device(chosen):
        current.append(chosen)
        yield

    monkeypatch.setattr(torch.cuda, 'device', device)
    a, b = (types.ModuleType(name) for name in 'ab')
    from transmamba_mm.ops.scan_op import problem

    tensors = make_inputs().values()
    p = problem(*tensors, True, None, [False], False, True)
    capturing = True
    assert race.winner([a, b], p, True) is a and not calls
    capturing = False
    for _ in range(2):
        assert race.winner([a, b], p, True) is a
        assert race.winner([a, b], p, False) is b
    assert len(calls) == 4
    tensors = make_inputs(length=30).values()
    other = problem(*tensors, True, None, [False], False, True)
    assert race.winner([a, b], other, True) is a
    assert len(calls) == 6
    # Events and streams are of the tensors' device, not of the current one.
    assert set(current) == {p.u.device}
