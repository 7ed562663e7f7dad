# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend 'torch' in blocks of all kinds."""

import pytest
import torch
from scan_cases import (
    DOUBLE_TOL,
    assert_close,
    check,
    make_inputs,
    make_multi,
    oracle,
    run,
)

from transmamba_mm.ops import selective_scan
from transmamba_mm.ops.backends import torch_blocks


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


@pytest.mark.parametrize('length', [0, 1, 2, 3, 39, 40, 41, 97])
def test_lengths_in_every_plan(length, plan):
    check(make_inputs(batch=3, length=length, groups=2), backend='torch')


@pytest.mark.parametrize('kinds', ['var var', 'const var', 'var const'])
@pytest.mark.parametrize('groups', [None, 1, 2, 4])
def test_groups(groups, kinds, plan):
    check(make_inputs(groups=groups, kinds=kinds.split()), backend='torch')


def test_constant_b_and_c(plan):
    check(make_inputs(kinds=('const', 'const')), backend='torch')


def test_directions(plan):
    inputs = make_multi(3, ('u', 'A', 'z'), groups=2, length=41)
    orders = torch.stack([torch.randperm(41) for _ in range(3)])
    check(
        inputs,
        backend='torch',
        orders=orders,
        reverse=[False, True, False],
        merge='sum',
    )


def test_gradient_of_z_alone(plan):
    inputs = make_inputs(length=41, groups=2)
    check(inputs, backend='torch', wrt=['z'])


def test_huge_step(plan):
    inputs = make_inputs(N=16, length=197)
    inputs['A'] = -torch.arange(1.0, 17).repeat(8, 1)
    inputs['delta'] *= 20
    inputs['delta'][:, :, ::5] = 60
    check(inputs, backend='torch')


def test_many_rows_are_cut_into_groups():
    inputs = make_inputs(batch=23, channels=64, N=16, length=9)
    check(inputs, backend='torch')
    assert torch_blocks.make_plan(23, 9, 64 * 60, 16, True).rows == 1


def test_double_precision(plan):
    inputs = make_inputs(length=50, groups=2, dtype=torch.float64)
    dout = torch.randn_like(inputs['u'])
    got = run(inputs, dout, backend='torch')
    assert got['last_state'].dtype == torch.float64
    assert_close(got, oracle(inputs, dout), DOUBLE_TOL, DOUBLE_TOL)


@pytest.mark.parametrize('kinds', ['var var', 'const const'])
def test_gradcheck(kinds):
    inputs = make_inputs(
        1, 4, 5, 2, groups=2, kinds=kinds.split(), dtype=torch.float64
    )
    names = list(inputs)

    def function(*args):
        return selective_scan(
            **dict(zip(names, args)), delta_softplus=True, backend='torch'
        )

    args = [x.requires_grad_() for x in inputs.values()]
    assert torch.autograd.gradcheck(function, args)


def test_saved_memory_is_bounded():
    """Kept for backward: the inputs and at most N / 8 times u's size."""
    inputs = make_inputs(batch=4, channels=96, N=16, length=160)
    inputs = {k: v.requires_grad_() for k, v in inputs.items()}
    kept = {}

    def pack(x):
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(**inputs, backend='torch')
    for x in inputs.values():
        kept.pop(x.data_ptr(), None)
    assert 0 < sum(kept.values()) <= inputs['u'].numel() * 16 / 8


def test_matmul_precision_setting_does_not_lower_precision():
    before = torch.get_float32_matmul_precision()
    inputs = make_inputs(batch=4, channels=192, N=16, length=40)
    try:
        torch.set_float32_matmul_precision('medium')
        check(inputs, backend='torch')
    finally:
        torch.set_float32_matmul_precision(before)
