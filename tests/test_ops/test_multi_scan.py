# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Several directions in one call."""

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
    make_multi,
    oracle,
    run,
    usable_backends,
)

from transmamba_mm.ops import multi_scan, selective_scan

BACKENDS = usable_backends()
ALL = tuple(make_inputs())
K, LENGTH = 3, 21
REVERSE = [False, True, False]
# What PlainMamba shares.
PLAIN_MAMBA = ('u', 'delta', 'A', 'D', 'z', 'delta_bias')


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def random_orders(length=LENGTH, num=K):
    return torch.stack([torch.randperm(length) for _ in range(num)])


def visits(orders, reverse, length=LENGTH):
    """The token of each step of each direction."""
    rows = [torch.arange(length)] * K if orders is None else orders
    return [x.flip(0) if back else x for x, back in zip(rows, reverse)]


def one_by_one(inputs, orders, reverse, by_step, merge, backend):
    """Single scans of copies in step order, put back in token order."""
    outputs, states = [], []
    for k, order in enumerate(visits(orders, reverse)):
        one = dict(inputs)
        for name in set(ALL) - {'B', 'C'}:
            x = inputs[name]
            single = {'A': 2, 'D': 1, 'delta_bias': 1}.get(name, 3)
            if x.dim() > single:
                one[name] = x.select(1 if single == 3 else 0, k)
        for name in ('B', 'C'):
            if inputs[name].dim() == 4:
                one[name] = inputs[name].unflatten(1, (K, -1))[:, k]
        for name in ('u', 'z', 'delta', 'B', 'C'):
            if one[name].dim() > 2 and (name in 'uz' or not by_step):
                one[name] = one[name].index_select(-1, order)
        y, last = selective_scan(
            **one,
            delta_softplus=True,
            return_last_state=True,
            backend=backend,
        )
        outputs.append(y.index_select(-1, order.argsort()))
        states.append(last)
    out = torch.stack(outputs, 1)
    out = out.sum(1) if merge == 'sum' else out
    return out, torch.stack(states, 1)


@pytest.mark.parametrize('merge', ['sum', 'stack'])
@pytest.mark.parametrize('by_step', [False, True])
@pytest.mark.parametrize('ordered', [False, True])
@pytest.mark.parametrize('reverse', [[False] * K, REVERSE])
@pytest.mark.parametrize('shared', [(), ALL, PLAIN_MAMBA])
def test_equals_single_scans(
    shared, reverse, ordered, by_step, merge, backend
):
    coefs = 'shared' if 'B' in shared else 'own'
    inputs = make_multi(K, shared, coefs=coefs, length=LENGTH)
    orders = random_orders() if ordered else None
    arguments = dict(orders=orders, reverse=reverse, by_step=by_step)
    results = []
    for scan in (multi_scan, one_by_one):
        leaves = {
            k: v.detach().clone().requires_grad_() for k, v in inputs.items()
        }
        if scan is multi_scan:
            out, last = multi_scan(
                **leaves,
                delta_softplus=True,
                return_last_state=True,
                merge=merge,
                backend=backend,
                **arguments,
            )
        else:
            out, last = one_by_one(
                leaves, merge=merge, backend='torch', **arguments
            )
        grads = torch.autograd.grad(out.square().sum(), list(leaves.values()))
        named = {f'grad_{k}': x for k, x in zip(leaves, grads)}
        results.append({'out': out.detach(), 'last_state': last, **named})
    assert_close(*results)


@pytest.mark.parametrize('coefs', ['own', 'shared', 'const'])
@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('merge', ['sum', 'stack'])
def test_equals_the_loop(merge, groups, coefs, backend):
    inputs = make_multi(K, PLAIN_MAMBA, groups, coefs, length=LENGTH, N=16)
    if coefs == 'shared':  # no axis of groups without directions
        inputs.update(
            {k: make_inputs(length=LENGTH, N=16)[k] for k in ('B', 'C')}
        )
    check(
        inputs,
        backend='auto' if coefs == 'const' else backend,
        orders=random_orders(),
        reverse=REVERSE,
        merge=merge,
    )


@pytest.mark.parametrize('absent', ['D', 'z', 'delta_bias', 'D z delta_bias'])
@pytest.mark.parametrize('shared', [(), PLAIN_MAMBA])
def test_optional_arguments(shared, absent, backend):
    inputs = make_multi(K, shared, length=LENGTH)
    for name in absent.split():
        del inputs[name]
    check(inputs, backend=backend, reverse=REVERSE, merge='sum')


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('shared', [(), PLAIN_MAMBA])
def test_gradient_of_one_input_alone(shared, name, backend):
    inputs = make_multi(K, shared, length=LENGTH, groups=2)
    arguments = dict(
        orders=random_orders(), reverse=REVERSE, by_step=True, merge='sum'
    )
    dout = torch.ones(2, 8, LENGTH)
    got = run(inputs, dout, wrt=[name], backend=backend, **arguments)
    assert_close(got, oracle(inputs, dout, **arguments))


def test_b_and_c_with_different_groups(backend):
    inputs = make_multi(K, PLAIN_MAMBA, 2, length=LENGTH)
    inputs['C'] = make_inputs(length=LENGTH)['C']
    check(inputs, backend=backend, reverse=REVERSE, merge='sum')
    inputs['C'] = make_multi(K, groups=4, length=LENGTH, seed=9)['C']
    check(inputs, backend=backend, reverse=REVERSE, merge='stack')


def test_sum_is_the_sum_of_the_stack(backend):
    inputs = make_multi(K, length=LENGTH)
    arguments = dict(
        delta_softplus=True, orders=random_orders(), backend=backend
    )
    total = multi_scan(**inputs, **arguments)
    stack = multi_scan(**inputs, merge='stack', **arguments)
    assert total.mT.is_contiguous() and stack.mT.is_contiguous()
    assert_close({'out': total}, {'out': stack.sum(1)})


def test_shared_equals_expanded(backend):
    shared = make_multi(K, ALL, coefs='shared', length=LENGTH)
    expanded = dict(shared)
    for name in ('u', 'delta', 'z'):
        expanded[name] = shared[name].unsqueeze(1).expand(-1, K, -1, -1)
    for name in ('A', 'D', 'delta_bias'):
        expanded[name] = shared[name].expand(K, *shared[name].shape)
    for name in ('B', 'C'):
        expanded[name] = shared[name].unsqueeze(1).expand(-1, K, -1, -1)
    arguments = dict(orders=random_orders(), reverse=[False] * K, merge='sum')
    dout = torch.randn(2, 8, LENGTH)
    one = run(shared, dout, backend=backend, **arguments)
    other = run(expanded, dout, backend=backend, **arguments)
    for name, x in shared.items():
        grad = other[f'grad_{name}']
        if grad.dim() > x.dim():
            axis = 0 if name in ('A', 'D', 'delta_bias') else 1
            other[f'grad_{name}'] = grad.sum(axis)
    assert_close(one, other)


def test_one_direction_is_a_selective_scan(backend):
    inputs = make_inputs(groups=2)
    order = torch.randperm(17)
    arguments = dict(delta_softplus=True, backend=backend)
    want = selective_scan(**inputs, order=order, **arguments)
    got = multi_scan(**inputs, orders=order[None], **arguments)
    assert torch.equal(got, want)
    got = multi_scan(**inputs, orders=order[None], merge='stack', **arguments)
    assert torch.equal(got[:, 0], want)
    want = selective_scan(**inputs, reverse=True, **arguments)
    assert torch.equal(multi_scan(**inputs, reverse=True, **arguments), want)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype, backend):
    inputs = make_multi(K, PLAIN_MAMBA, length=LENGTH)
    for name in ('u', 'delta', 'B', 'C', 'z'):
        inputs[name] = inputs[name].to(dtype)
    arguments = dict(orders=random_orders(), reverse=REVERSE, merge='sum')
    dout = torch.randn(2, 8, LENGTH).to(dtype)
    got = run(inputs, dout, backend=backend, **arguments)
    assert got['out'].dtype == dtype
    assert all(got[f'grad_{k}'].dtype == v.dtype for k, v in inputs.items())
    want = oracle(inputs, dout, **arguments)
    assert_close(got, want, HALF_OUT_TOL, HALF_GRAD_TOL)


def test_no_tokens_and_no_batch(backend):
    for sizes in ({'length': 0}, {'batch': 0}):
        inputs = make_multi(K, PLAIN_MAMBA, **sizes)
        leaves = {k: v.requires_grad_() for k, v in inputs.items()}
        out = multi_scan(
            **leaves, reverse=REVERSE, merge='stack', backend=backend
        )
        assert out.shape == (len(inputs['u']), K, *inputs['u'].shape[1:])
        out.sum().backward()
        assert all(x.grad.eq(0).all() for x in leaves.values())


@pytest.mark.parametrize(
    'replace, message',
    [
        ({'merge': 'mean'}, "merge: expected 'sum' or 'stack', got 'mean'"),
        ({'reverse': []}, 'there must be a direction'),
        (
            {'orders': torch.zeros(2, LENGTH, dtype=torch.int)},
            'reverse: .* as many as orders has rows, 2, got 3',
        ),
        ({'u': torch.randn(2, 2, 8, LENGTH)}, r'u: .*\(B, K, D, L\).*K = 3'),
        ({'A': torch.randn(2, 8, 4)}, r'A: .*\(K, D, N\) = \(3, 8, 4\)'),
        ({'D': torch.randn(8, 3)}, r'D: .*\(K, D\) = \(3, 8\)'),
        (
            {'z': torch.randn(2, 8, 3, LENGTH)},
            r'z: .*\(B, K, D, L\) = \(2, 3, 8, 21\), got',
        ),
        ({'B': torch.randn(2, 4, 4, LENGTH)}, r'B: .*multiple of K = 3'),
        ({'C': torch.randn(2, 9, 4, LENGTH)}, 'C: its 3 groups .* D = 8'),
        ({'C': torch.randn(2, 3, 5, LENGTH)}, r'C: .*\(B, K\*G, N, L\)'),
    ],
)
def test_wrong_values_are_named(replace, message):
    inputs = make_multi(K, PLAIN_MAMBA, length=LENGTH)
    arguments = {**inputs, 'reverse': REVERSE, **replace}
    with pytest.raises(ValueError, match=message):
        multi_scan(**arguments)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num=st.integers(1, 5),
    batch=st.integers(1, 3),
    per_group=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 3]),
    length=st.integers(0, 40),
    N=st.integers(1, 9),
    coefs=st.sampled_from(['own', 'own', 'shared', 'const']),
    shared=st.sets(st.sampled_from(PLAIN_MAMBA)),
    absent=st.sets(st.sampled_from(OPTIONAL)),
    ordered=st.booleans(),
    reverse=st.lists(st.booleans(), min_size=5, max_size=5),
    by_step=st.booleans(),
    merge=st.sampled_from(['sum', 'stack']),
    backend=st.sampled_from([*BACKENDS, 'auto']),
    seed=st.integers(0, 1000),
)
def test_random_problems(
    num,
    batch,
    per_group,
    groups,
    length,
    N,
    coefs,
    shared,
    absent,
    ordered,
    reverse,
    by_step,
    merge,
    backend,
    seed,
):
    inputs = make_multi(
        num,
        shared,
        groups if coefs == 'own' else None,
        coefs,
        seed,
        batch=batch,
        channels=per_group * groups,
        length=length,
        N=N,
    )
    for name in absent:
        del inputs[name]
    check(
        inputs,
        backend='auto' if coefs == 'const' else backend,
        orders=random_orders(length, num) if ordered else None,
        reverse=reverse[:num],
        by_step=by_step,
        merge=merge,
    )
