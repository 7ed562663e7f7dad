# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Every backend against the float64 loop and against golden files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import (
    HALF_GRAD_TOL,
    HALF_OUT_TOL,
    OPTIONAL,
    assert_close,
    check,
    make_inputs,
    oracle,
    run,
    usable_backends,
)

from transmamba_mm.ops import selective_scan

GOLDEN = Path(__file__).parents[1] / 'data' / 'golden'
GOLDEN_FILES = sorted(GOLDEN.glob('selective_scan_*.npz'))
BACKENDS = usable_backends()


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def or_skip(inputs, backend):
    """Skip what the backend refuses."""
    try:
        selective_scan(**inputs, backend=backend)
    except ValueError as error:
        if 'does not do this' not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize('path', GOLDEN_FILES, ids=lambda p: p.stem)
def test_golden(path, backend):
    data = np.load(path)
    config = json.loads(str(data['config']))
    inputs = {
        k[3:]: torch.from_numpy(data[k]) for k in data if k.startswith('in/')
    }
    dout = inputs.pop('dout')
    or_skip(inputs, backend)
    want = {
        k[4:]: torch.from_numpy(data[k]) for k in data if k.startswith('f64/')
    }
    softplus = config.get('softplus', True)
    assert_close(run(inputs, dout, softplus, backend), want)
    assert_close(oracle(inputs, dout, softplus), want, 1e-10, 1e-10)


def test_golden_files_are_there():
    names = ' '.join(p.stem for p in GOLDEN_FILES)
    assert 'stiff_fast' in names and 'stiff_slow' in names


@pytest.mark.parametrize('N', [1, 3, 4, 6, 16, 17, 64])
@pytest.mark.parametrize('length', [0, 1, 7, 15, 16, 17, 63, 64, 65])
def test_lengths_and_states(length, N, backend):
    check(make_inputs(length=length, N=N), backend=backend)


@pytest.mark.parametrize('length', [197, 1024])
def test_long_sequences(length, backend):
    check(make_inputs(length=length, N=16), backend=backend)


@pytest.mark.parametrize('settings', ['order', 'reverse', 'order reverse'])
@pytest.mark.parametrize('by_step', [False, True])
@pytest.mark.parametrize('length', [1, 16, 33, 65])
def test_orders(settings, by_step, length, backend):
    inputs = make_inputs(length=length, groups=2)
    check(
        inputs,
        backend=backend,
        order=torch.randperm(length) if 'order' in settings else None,
        reverse='reverse' in settings,
        by_step=by_step,
    )


@pytest.mark.parametrize('dtype', [torch.int32, torch.int64])
def test_an_order_equals_permuted_tensors(dtype, backend):
    inputs = make_inputs(length=20)
    settings = dict(delta_softplus=True, backend=backend)
    order = torch.randperm(20)
    permuted = {
        k: v[..., order] if k in ('u', 'delta', 'B', 'C', 'z') else v
        for k, v in inputs.items()
    }
    want = selective_scan(**permuted, **settings)
    got = selective_scan(**inputs, order=order.to(dtype), **settings)
    assert_close({'out': got[..., order]}, {'out': want})
    # Only u and the output are permuted if the rest goes by steps.
    mixed = {**inputs, 'u': permuted['u'], 'z': permuted['z']}
    want = selective_scan(**mixed, **settings)
    got = selective_scan(**inputs, order=order, by_step=True, **settings)
    assert_close({'out': got[..., order]}, {'out': want})
    flipped = {
        k: v.flip(-1) if k in ('u', 'delta', 'B', 'C', 'z') else v
        for k, v in inputs.items()
    }
    want = selective_scan(**flipped, **settings)
    got = selective_scan(**inputs, reverse=True, **settings)
    assert_close({'out': got.flip(-1)}, {'out': want})


@pytest.mark.parametrize('kinds', ['var var', 'const var', 'var const'])
@pytest.mark.parametrize('groups', [None, 1, 2, 4])
def test_groups(groups, kinds, backend):
    inputs = make_inputs(groups=groups, kinds=kinds.split())
    or_skip(inputs, backend)
    check(inputs, backend=backend)


@pytest.mark.parametrize('settings', [{}, {'reverse': True}])
def test_constant_b_and_c(settings, backend):
    inputs = make_inputs(kinds=('const', 'const'))
    or_skip(inputs, backend)
    check(inputs, backend=backend, **settings)


def test_auto_does_what_a_backend_refuses():
    check(make_inputs(kinds=('const', 'var')))


def test_b_and_c_with_different_groups(backend):
    inputs = make_inputs(channels=12, groups=2)
    inputs['C'] = make_inputs(groups=3, seed=5)['C']
    check(inputs, backend=backend)
    inputs['C'] = make_inputs(seed=5)['C']
    check(inputs, backend=backend)


@pytest.mark.parametrize('channels', [1, 5, 20, 24, 40])
def test_channels(channels, backend):
    # With one channel, gradients of weights are single sums: none that
    # nearly cancels.
    inputs = make_inputs(channels=channels, N=16, length=33, seed=3)
    check(inputs, backend=backend)


def test_empty_batch(backend):
    inputs = {k: v.requires_grad_() for k, v in make_inputs(batch=0).items()}
    out, last = selective_scan(
        **inputs, delta_softplus=True, return_last_state=True, backend=backend
    )
    assert out.shape == (0, 8, 17) and last.shape == (0, 8, 4)
    out.sum().backward()
    assert all(x.grad.eq(0).all() for x in inputs.values())


@pytest.mark.parametrize('softplus', [True, False])
@pytest.mark.parametrize('absent', ['D', 'z', 'delta_bias', 'D z delta_bias'])
def test_optional_arguments(absent, softplus, backend):
    inputs = make_inputs()
    if not softplus:
        inputs['delta'] = inputs['delta'].abs()
        inputs['delta_bias'] = inputs['delta_bias'].abs()
    for name in absent.split():
        del inputs[name]
    check(inputs, softplus, backend=backend)


@pytest.mark.parametrize('name', list(make_inputs()))
def test_gradient_of_one_input_alone(name, backend):
    inputs = make_inputs(groups=2)
    dout = torch.ones_like(inputs['u'])
    got = run(inputs, dout, wrt=[name], backend=backend)
    assert_close(got, oracle(inputs, dout))


@pytest.mark.parametrize('reverse', [False, True])
def test_views(reverse, backend):
    wide = make_inputs(batch=4, channels=16, length=40, groups=2)
    inputs = {
        'u': wide['u'].transpose(1, 2).contiguous().transpose(1, 2),
        'delta': wide['delta'].repeat_interleave(2, 2)[:, :, ::2],
        'A': wide['A'].t().contiguous().t(),
        'B': wide['B'].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        'C': wide['C'][:1].expand(4, -1, -1, -1),
        'D': wide['D'][:1].expand(16),
        'z': wide['z'][:, :1].expand(-1, 16, -1),
        'delta_bias': torch.stack([wide['delta_bias']] * 2, 1)[:, 0],
    }
    check(inputs, backend=backend, reverse=reverse)


@pytest.mark.parametrize('backend', [*BACKENDS, 'reference'])
def test_expanded_grad_output(backend):
    inputs = make_inputs()
    one = torch.ones(1, 1, 1)
    got = run(inputs, one.expand_as(inputs['u']), backend=backend)
    want = run(inputs, torch.ones_like(inputs['u']), backend=backend)
    assert_close(got, want)


@pytest.mark.parametrize('settings', [{}, {'reverse': True}])
def test_output_may_be_changed_in_place(settings, backend):
    inputs = make_inputs()
    u = inputs.pop('u').requires_grad_()
    out = selective_scan(
        u, **inputs, delta_softplus=True, backend=backend, **settings
    )
    out.mul_(2).add_(1)
    out.sum().backward()
    assert torch.isfinite(u.grad).all()


def test_output_is_channels_last(backend):
    out = selective_scan(**make_inputs(), backend=backend)
    assert out.mT.is_contiguous()


def test_inputs_are_not_changed(backend):
    inputs = make_inputs()
    before = {k: v.clone() for k, v in inputs.items()}
    ones = torch.ones_like(inputs['u'])
    run(inputs, ones, backend=backend)
    run(inputs, ones, softplus=False, backend=backend)
    run(inputs, ones, backend=backend, reverse=True)
    assert all(torch.equal(before[k], inputs[k]) for k in before)


def test_zero_decay_rate(backend):
    inputs = make_inputs(length=50)
    inputs['A'].zero_()
    check(inputs, backend=backend)


def test_tiny_step(backend):
    inputs = make_inputs(length=50)
    inputs['delta'].fill_(-30.0)
    check(inputs, backend=backend)


def test_huge_step(backend):
    inputs = make_inputs(N=16, length=197)
    inputs['A'] = -torch.arange(1.0, 17).repeat(8, 1)
    inputs['delta'] *= 20
    inputs['delta'][:, :, ::5] = 60
    check(inputs, backend=backend)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite_inputs_propagate(value, backend):
    inputs = make_inputs(length=50)
    inputs['u'][0, 3, 20] = value
    out = selective_scan(**inputs, delta_softplus=True, backend=backend)
    assert torch.isfinite(out[0, 3, :20]).all()
    assert not torch.isfinite(out[0, 3, 20])
    assert torch.isfinite(out[1]).all()
    assert torch.isfinite(out[0, :3]).all()
    inputs['u'][0, 3, 20] = 0
    inputs['delta'][0, 3, 20] = float('nan')
    out = selective_scan(**inputs, delta_softplus=True, backend=backend)
    assert torch.isnan(out[0, 3, 20:]).all()


@pytest.mark.parametrize('backend', [*BACKENDS, 'reference'])
def test_last_state_has_no_gradient(backend):
    inputs = {k: v.requires_grad_() for k, v in make_inputs().items()}
    out, last = selective_scan(
        **inputs, return_last_state=True, backend=backend
    )
    assert out.requires_grad and not last.requires_grad


def test_thread_counts_agree(backend):
    inputs = make_inputs(batch=8, channels=96, N=16, length=40)
    dout = torch.randn_like(inputs['u'])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(inputs, dout, backend=backend)
        torch.set_num_threads(2)
        two = run(inputs, dout, backend=backend)
    finally:
        torch.set_num_threads(threads)
    assert_close(two, one)


def test_double_precision_goes_to_a_backend_that_has_it():
    inputs = make_inputs(dtype=torch.float64)
    out, last = selective_scan(**inputs, return_last_state=True)
    assert out.dtype == last.dtype == torch.float64


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype, backend):
    inputs = make_inputs(length=64, N=16)
    for name in ('u', 'delta', 'B', 'C', 'z'):
        inputs[name] = inputs[name].to(dtype)
    dout = torch.randn(inputs['u'].shape).to(dtype)
    got = run(inputs, dout, backend=backend)
    assert got['out'].dtype == dtype
    assert got['last_state'].dtype == torch.float32
    assert all(got[f'grad_{k}'].dtype == v.dtype for k, v in inputs.items())
    assert_close(got, oracle(inputs, dout), HALF_OUT_TOL, HALF_GRAD_TOL)


@pytest.mark.parametrize('backend', [*BACKENDS, 'reference'])
def test_autocast_does_not_lower_precision(backend):
    inputs = make_inputs(length=64, N=16)
    dout = torch.randn_like(inputs['u'])
    want = oracle(inputs, dout)
    with torch.autocast('cpu', torch.bfloat16):
        got = run(inputs, dout, backend=backend)
    assert got['out'].dtype == torch.float32
    assert_close(got, want)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    per_group=st.integers(1, 5),
    groups=st.sampled_from([None, 1, 2, 3]),
    length=st.integers(0, 70),
    N=st.integers(1, 9),
    kinds=st.tuples(*[st.sampled_from(['var', 'var', 'const'])] * 2),
    absent=st.sets(st.sampled_from(OPTIONAL)),
    softplus=st.booleans(),
    seed=st.integers(0, 1000),
    backend=st.sampled_from([*BACKENDS, 'auto']),
    ordered=st.booleans(),
    reverse=st.booleans(),
    by_step=st.booleans(),
)
def test_random_problems(
    batch,
    per_group,
    groups,
    length,
    N,
    kinds,
    absent,
    softplus,
    seed,
    backend,
    ordered,
    reverse,
    by_step,
):
    inputs = make_inputs(
        batch, per_group * (groups or 1), length, N, groups, kinds, seed
    )
    if not softplus:
        inputs['delta'] = inputs['delta'].abs() * 0.3
        inputs['delta_bias'] = inputs['delta_bias'].abs() * 0.1
    for name in absent:
        del inputs[name]
    check(
        inputs,
        softplus,
        backend='auto' if 'const' in kinds else backend,
        order=torch.randperm(length) if ordered else None,
        reverse=reverse,
        by_step=by_step,
    )
