# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Token after token equals the scan."""

import pytest
import torch
from scan_cases import assert_close, make_inputs

from transmamba_mm.ops import selective_scan, selective_state_step

IN_TIME = ('u', 'delta', 'B', 'C', 'z')


def at(inputs, t):
    return {k: v[..., t] if k in IN_TIME else v for k, v in inputs.items()}


def steps(state, inputs, first=0):
    length = inputs['u'].shape[-1]
    return torch.stack(
        [
            selective_state_step(state, **at(inputs, t), delta_softplus=True)
            for t in range(first, length)
        ],
        -1,
    )


@pytest.mark.parametrize('groups', [None, 1, 2, 4])
@pytest.mark.parametrize('absent', ['', 'D', 'z', 'delta_bias'])
def test_steps_equal_the_scan(absent, groups):
    inputs = make_inputs(groups=groups, length=12)
    inputs.pop(absent, None)
    want, last = selective_scan(
        **inputs, delta_softplus=True, return_last_state=True
    )
    state = torch.zeros(2, 8, 4)
    got = steps(state, inputs)
    assert_close(
        {'out': got, 'last_state': state}, {'out': want, 'last_state': last}
    )


def test_steps_continue_a_scan():
    inputs = make_inputs(length=12)
    want = selective_scan(**inputs, delta_softplus=True)
    head = {k: v[..., :7] if k in IN_TIME else v for k, v in inputs.items()}
    _, state = selective_scan(
        **head, delta_softplus=True, return_last_state=True
    )
    got = steps(state, inputs, first=7)
    assert_close({'out': got}, {'out': want[..., 7:]})


def test_without_softplus():
    inputs = {k: v[..., 0] for k, v in make_inputs().items() if k in IN_TIME}
    weights = make_inputs()
    state = torch.randn(2, 8, 4)
    dt, u = inputs['delta'].unsqueeze(2), inputs['u'].unsqueeze(2)
    want = torch.exp(dt * weights['A']) * state
    want = want + dt * u * inputs['B'].unsqueeze(1)
    selective_state_step(state, A=weights['A'], **inputs)
    torch.testing.assert_close(state, want)


def test_constant_weights():
    inputs = make_inputs(kinds=('const', 'const'), length=5)
    want = selective_scan(**inputs, delta_softplus=True)
    state = torch.zeros(2, 8, 4)
    for t in range(5):
        one = {k: v[..., t] for k, v in inputs.items() if k in 'uz'}
        one.update(delta=inputs['delta'][..., t], A=inputs['A'])
        one.update({k: inputs[k].expand(2, -1, -1) for k in 'BC'})
        one.update({k: inputs[k] for k in ('D', 'delta_bias')})
        y = selective_state_step(state, **one, delta_softplus=True)
        assert_close({'out': y}, {'out': want[..., t]})


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    inputs = make_inputs(length=12)
    for name in IN_TIME:
        inputs[name] = inputs[name].to(dtype)
    want, last = selective_scan(
        **inputs, delta_softplus=True, return_last_state=True
    )
    state = torch.zeros(2, 8, 4)
    got = steps(state, inputs)
    assert got.dtype == dtype and state.dtype == torch.float32
    assert_close({'last_state': state}, {'last_state': last})
    assert_close({'out': got}, {'out': want}, out_tol=1e-2)


def test_double_precision():
    inputs = make_inputs(length=3, dtype=torch.float64)
    state = torch.zeros(2, 8, 4, dtype=torch.float64)
    want = selective_scan(**inputs, delta_softplus=True)
    torch.testing.assert_close(steps(state, inputs), want)


def test_a_state_that_is_a_view_is_changed_in_place():
    states = torch.zeros(3, 4, 8, 2)
    inputs = make_inputs(length=1)
    selective_state_step(states[1].transpose(0, 2), **at(inputs, 0))
    assert states[1].abs().sum() > 0
    assert states[0].eq(0).all() and states[2].eq(0).all()


def test_it_can_be_compiled():
    inputs = make_inputs(length=2)
    want_state = torch.zeros(2, 8, 4)
    want = selective_state_step(want_state, **at(inputs, 1))
    state = torch.zeros(2, 8, 4)
    step = torch.compile(
        selective_state_step, backend='aot_eager', fullgraph=True
    )
    torch.testing.assert_close(step(state, **at(inputs, 1)), want)
    torch.testing.assert_close(state, want_state)


@pytest.mark.parametrize(
    'replace, error, message',
    [
        ({'state': torch.zeros(2, 8)}, ValueError, r'state: .*\(B, D, N\)'),
        ({'u': torch.zeros(8, 2)}, ValueError, r'u: .*\(2, 8\), got \(8, 2'),
        ({'A': torch.zeros(8, 5)}, ValueError, r'A: .*\(8, 4\)'),
        ({'D': torch.zeros(2, 8)}, ValueError, r'D: expected shape \(D,\)'),
        ({'z': torch.zeros(2)}, ValueError, 'z: expected'),
        ({'B': torch.zeros(8, 4)}, ValueError, r'B: .*\(B, N\) = \(2, 4\)'),
        ({'C': torch.zeros(2, 3, 4)}, ValueError, 'C: its 3 groups'),
        ({'C': torch.zeros(2, 4, device='meta')}, ValueError, 'C: is on meta'),
        ({'B': [1.0]}, TypeError, 'B: expected a tensor, got list'),
        ({'u': torch.zeros(2, 8, dtype=int)}, TypeError, 'u: .*floating'),
    ],
)
def test_wrong_arguments_are_named(replace, error, message):
    arguments = {'state': torch.zeros(2, 8, 4), **at(make_inputs(), 0)}
    with pytest.raises(error, match=message):
        selective_state_step(**{**arguments, **replace})


def test_gradients_are_refused():
    arguments = {'state': torch.zeros(2, 8, 4), **at(make_inputs(), 0)}
    arguments['A'].requires_grad_()
    with pytest.raises(RuntimeError, match=r'A requires .*torch\.no_grad'):
        selective_state_step(**arguments)
    with torch.no_grad():
        assert selective_state_step(**arguments).shape == (2, 8)
