# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The fast backend against the float64 loop and against golden files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transmamba_mm.ops import selective_scan, torch_blocks

GOLDEN = Path(__file__).parents[1] / 'data' / 'golden'
GOLDEN_FILES = sorted(GOLDEN.glob('selective_scan_*.npz'))

# Largest error, relative to the largest magnitude of the float64 result.
OUT_TOL = 1e-6
GRAD_TOL = 5e-6
DOUBLE_TOL = 1e-12
HALF_OUT_TOL = 1e-2
HALF_GRAD_TOL = 2e-2

OPTIONAL = ('D', 'z', 'delta_bias')


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


def run(inputs, dout, softplus=True, backend='auto', wrt=None):
    """Return out, last_state and gradients by name."""
    wrt = list(inputs) if wrt is None else wrt
    leaves = {
        k: v.detach().requires_grad_(k in wrt) for k, v in inputs.items()
    }
    out, last = selective_scan(
        **leaves,
        delta_softplus=softplus,
        return_last_state=True,
        backend=backend,
    )
    out.backward(dout)
    grads = {f'grad_{k}': leaves[k].grad for k in wrt}
    return {'out': out.detach(), 'last_state': last, **grads}


def oracle(inputs, dout, softplus=True):
    inputs = {k: v.double() for k, v in inputs.items()}
    want = run(inputs, dout.double(), softplus, backend='reference')
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


def check(inputs, softplus=True, seed=1, **kwargs):
    rng = torch.Generator().manual_seed(seed)
    dout = torch.randn(inputs['u'].shape, generator=rng).to(inputs['u'].dtype)
    got = run(inputs, dout, softplus, **kwargs)
    assert_close(got, oracle(inputs, dout, softplus))


@pytest.fixture(params=['default', 'tiny_blocks', 'two_level'])
def plan(request, monkeypatch):
    """Cut problems in blocks as on CPU, into very small ones, as on GPU."""
    if request.param == 'tiny_blocks':
        monkeypatch.setattr(torch_blocks, 'STEP_ELEMENTS', 40)
        monkeypatch.setattr(torch_blocks, 'BLOCK_ELEMENTS', 64)
        monkeypatch.setattr(torch_blocks, 'MIN_STEPS', 3)
    if request.param == 'two_level':
        monkeypatch.setattr(
            torch_blocks,
            'make_plan',
            lambda B, L, D, N, on_cpu: torch_blocks.Plan(max(B, 1), 40, True),
        )
    return request.param


@pytest.mark.parametrize('path', GOLDEN_FILES, ids=lambda p: p.stem)
def test_golden(path, plan):
    data = np.load(path)
    config = json.loads(str(data['config']))
    inputs = {
        k[3:]: torch.from_numpy(data[k]) for k in data if k.startswith('in/')
    }
    dout = inputs.pop('dout')
    want = {
        k[4:]: torch.from_numpy(data[k]) for k in data if k.startswith('f64/')
    }
    softplus = config.get('softplus', True)
    assert_close(run(inputs, dout, softplus), want)
    assert_close(oracle(inputs, dout, softplus), want, 1e-10, 1e-10)


def test_golden_files_are_there():
    names = ' '.join(p.stem for p in GOLDEN_FILES)
    assert 'stiff_fast' in names and 'stiff_slow' in names


@pytest.mark.parametrize('N', [1, 3, 4, 16, 17])
@pytest.mark.parametrize('length', [0, 1, 7, 15, 16, 17, 63, 64, 65, 197])
def test_lengths_and_states(length, N):
    check(make_inputs(length=length, N=N))


@pytest.mark.parametrize('length', [0, 1, 2, 3, 39, 40, 41, 97])
def test_lengths_in_every_plan(length, plan):
    check(make_inputs(batch=3, length=length, groups=2))


@pytest.mark.parametrize('kinds', ['var var', 'const var', 'var const'])
@pytest.mark.parametrize('groups', [None, 1, 2, 4])
def test_groups(groups, kinds, plan):
    check(make_inputs(groups=groups, kinds=kinds.split()))


def test_constant_b_and_c(plan):
    check(make_inputs(kinds=('const', 'const')))


def test_b_and_c_with_different_groups():
    inputs = make_inputs(channels=12, groups=2)
    inputs['C'] = make_inputs(groups=3, seed=5)['C']
    check(inputs)
    inputs['C'] = make_inputs(seed=5)['C']
    check(inputs)


@pytest.mark.parametrize('channels', [1, 5, 20, 40])
def test_channels(channels):
    check(make_inputs(channels=channels, N=16, length=33))


def test_many_rows_are_cut_into_groups():
    check(make_inputs(batch=23, channels=64, N=16, length=9))
    assert torch_blocks.make_plan(23, 9, 64 * 60, 16, True).rows == 1


def test_empty_batch():
    out = selective_scan(**make_inputs(batch=0), delta_softplus=True)
    assert out.shape == (0, 8, 17)


@pytest.mark.parametrize('softplus', [True, False])
@pytest.mark.parametrize('absent', ['D', 'z', 'delta_bias', 'D z delta_bias'])
def test_optional_arguments(absent, softplus):
    inputs = make_inputs()
    if not softplus:
        inputs['delta'] = inputs['delta'].abs()
        inputs['delta_bias'] = inputs['delta_bias'].abs()
    for name in absent.split():
        del inputs[name]
    check(inputs, softplus)


@pytest.mark.parametrize('name', list(make_inputs()))
def test_gradient_of_one_input_alone(name):
    inputs = make_inputs(groups=2)
    dout = torch.ones_like(inputs['u'])
    got = run(inputs, dout, wrt=[name])
    assert_close(got, oracle(inputs, dout))


def test_views(plan):
    wide = make_inputs(batch=4, channels=16, length=40, groups=2)
    inputs = {
        'u': wide['u'].transpose(1, 2).contiguous().transpose(1, 2),
        'delta': wide['delta'][:, :, ::2].repeat_interleave(2, 2)[:, :, ::1],
        'A': wide['A'].t().contiguous().t(),
        'B': wide['B'].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        'C': wide['C'][:1].expand(4, -1, -1, -1),
        'D': wide['D'][:1].expand(16),
        'z': wide['z'][:, :1].expand(-1, 16, -1),
        'delta_bias': torch.stack([wide['delta_bias']] * 2, 1)[:, 0],
    }
    check(inputs)


@pytest.mark.parametrize('backend', ['torch', 'reference'])
def test_expanded_grad_output(backend):
    inputs = make_inputs()
    one = torch.ones(1, 1, 1)
    got = run(inputs, one.expand_as(inputs['u']), backend=backend)
    want = run(inputs, torch.ones_like(inputs['u']), backend=backend)
    assert_close(got, want)


def test_output_may_be_changed_in_place():
    inputs = make_inputs()
    u = inputs.pop('u').requires_grad_()
    out = selective_scan(u, **inputs, delta_softplus=True)
    out.mul_(2).add_(1)
    out.sum().backward()
    assert torch.isfinite(u.grad).all()


def test_inputs_are_not_changed():
    inputs = make_inputs()
    before = {k: v.clone() for k, v in inputs.items()}
    run(inputs, torch.ones_like(inputs['u']))
    run(inputs, torch.ones_like(inputs['u']), softplus=False)
    assert all(torch.equal(before[k], inputs[k]) for k in before)


def test_zero_decay_rate():
    inputs = make_inputs(length=50)
    inputs['A'].zero_()
    check(inputs)


def test_tiny_step():
    inputs = make_inputs(length=50)
    inputs['delta'].fill_(-30.0)
    check(inputs)


def test_huge_step(plan):
    inputs = make_inputs(N=16, length=197)
    inputs['A'] = -torch.arange(1.0, 17).repeat(8, 1)
    inputs['delta'] *= 20
    inputs['delta'][:, :, ::5] = 60
    check(inputs)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite_inputs_propagate(value, plan):
    inputs = make_inputs(length=50)
    inputs['u'][0, 3, 20] = value
    out = selective_scan(**inputs, delta_softplus=True)
    assert torch.isfinite(out[0, 3, :20]).all()
    assert not torch.isfinite(out[0, 3, 20])
    assert torch.isfinite(out[1]).all()
    assert torch.isfinite(out[0, :3]).all()
    inputs['u'][0, 3, 20] = 0
    inputs['delta'][0, 3, 20] = float('nan')
    out = selective_scan(**inputs, delta_softplus=True)
    assert torch.isnan(out[0, 3, 20:]).all()


def test_last_state_has_no_gradient():
    inputs = {k: v.requires_grad_() for k, v in make_inputs().items()}
    for backend in ('torch', 'reference'):
        out, last = selective_scan(
            **inputs, return_last_state=True, backend=backend
        )
        assert out.requires_grad and not last.requires_grad


def test_last_state_continues_the_sequence():
    """Feeding the state back through one more step gives the longer scan."""
    inputs = make_inputs(length=20)
    inputs['delta'] = inputs['delta'].abs()
    inputs['delta_bias'] = inputs['delta_bias'].abs()
    _, want = selective_scan(**inputs, return_last_state=True)
    head = {
        k: v[..., :19] if k in ('u', 'delta', 'B', 'C', 'z') else v
        for k, v in inputs.items()
    }
    _, h = selective_scan(**head, return_last_state=True)
    dt = (inputs['delta'][:, :, 19] + inputs['delta_bias'])[..., None]
    x = inputs['u'][:, :, 19, None] * inputs['B'][:, None, :, 19]
    h = torch.exp(dt * inputs['A']) * h + dt * x
    assert_close({'last_state': h}, {'last_state': want})


def test_thread_counts_agree():
    inputs = make_inputs(batch=8, channels=96, N=16, length=40)
    dout = torch.randn_like(inputs['u'])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(inputs, dout)
        torch.set_num_threads(2)
        two = run(inputs, dout)
    finally:
        torch.set_num_threads(threads)
    assert_close(two, one)


@pytest.mark.parametrize('backend', ['torch', 'reference'])
@pytest.mark.parametrize('kinds', ['var var', 'const const'])
def test_gradcheck(backend, kinds):
    inputs = make_inputs(
        1, 4, 5, 2, groups=2, kinds=kinds.split(), dtype=torch.float64
    )
    names = list(inputs)

    def function(*args):
        return selective_scan(
            **dict(zip(names, args)), delta_softplus=True, backend=backend
        )

    args = [x.requires_grad_() for x in inputs.values()]
    assert torch.autograd.gradcheck(function, args)


def test_double_precision(plan):
    inputs = make_inputs(length=50, groups=2, dtype=torch.float64)
    dout = torch.randn_like(inputs['u'])
    got = run(inputs, dout)
    assert got['last_state'].dtype == torch.float64
    assert_close(got, oracle(inputs, dout), DOUBLE_TOL, DOUBLE_TOL)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    inputs = make_inputs(length=64, N=16)
    for name in ('u', 'delta', 'B', 'C', 'z'):
        inputs[name] = inputs[name].to(dtype)
    dout = torch.randn(inputs['u'].shape).to(dtype)
    got = run(inputs, dout)
    assert got['out'].dtype == dtype
    assert got['last_state'].dtype == torch.float32
    assert all(got[f'grad_{k}'].dtype == v.dtype for k, v in inputs.items())
    assert_close(got, oracle(inputs, dout), HALF_OUT_TOL, HALF_GRAD_TOL)


@pytest.mark.parametrize('backend', ['torch', 'reference'])
def test_autocast_does_not_lower_precision(backend):
    inputs = make_inputs(length=64, N=16)
    dout = torch.randn_like(inputs['u'])
    want = oracle(inputs, dout)
    with torch.autocast('cpu', torch.bfloat16):
        got = run(inputs, dout, backend=backend)
    assert got['out'].dtype == torch.float32
    assert_close(got, want)


def test_matmul_precision_setting_does_not_lower_precision():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision('medium')
        check(make_inputs(batch=4, channels=192, N=16, length=40))
    finally:
        torch.set_float32_matmul_precision(before)


def test_second_derivative_is_refused():
    inputs = make_inputs()
    u = inputs.pop('u').requires_grad_()
    out = selective_scan(u, **inputs, delta_softplus=True)
    with pytest.raises(RuntimeError, match='second derivative'):
        torch.autograd.grad(out.sum(), u, create_graph=True)
    out = selective_scan(u, **inputs, delta_softplus=True, backend='reference')
    (grad,) = torch.autograd.grad(out.sum(), u, create_graph=True)
    assert grad.shape == u.shape


def test_no_state_is_kept_without_grad():
    inputs = {k: v.requires_grad_() for k, v in make_inputs().items()}
    with torch.no_grad():
        assert selective_scan(**inputs).grad_fn is None


def test_saved_memory_is_bounded():
    """Kept for backward: the inputs and at most N / 8 times u's size."""
    inputs = make_inputs(batch=4, channels=96, N=16, length=160)
    inputs = {k: v.requires_grad_() for k, v in inputs.items()}
    kept = {}

    def pack(x):
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(**inputs)
    for x in inputs.values():
        kept.pop(x.data_ptr(), None)
    # One more u: the output before the gate.
    assert sum(kept.values()) <= inputs['u'].numel() * (1 + 16 / 8)


@pytest.mark.filterwarnings('ignore')
def test_torch_compile_breaks_the_graph_but_works():
    inputs = make_inputs()
    u = inputs.pop('u').requires_grad_()

    def function(x):
        y = selective_scan(x * 2, **inputs, delta_softplus=True)
        return y.sum() + x.sum()

    want = torch.autograd.grad(function(u), u)
    compiled = torch.compile(function, backend='eager')
    assert_close(
        {'grad': torch.autograd.grad(compiled(u), u)[0]}, {'grad': want[0]}
    )


@settings(max_examples=40, deadline=None, derandomize=True)
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
)
def test_random_problems(
    batch, per_group, groups, length, N, kinds, absent, softplus, seed
):
    inputs = make_inputs(
        batch, per_group * (groups or 1), length, N, groups, kinds, seed
    )
    if not softplus:
        inputs['delta'] = inputs['delta'].abs() * 0.3
        inputs['delta_bias'] = inputs['delta_bias'].abs() * 0.1
    for name in absent:
        del inputs[name]
    check(inputs, softplus)
