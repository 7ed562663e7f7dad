# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Orders are checked once per tensor."""

import gc

import pytest
import torch
from scan_cases import make_inputs, make_multi, usable_backends
from torch._subclasses.fake_tensor import FakeTensorMode

from transmamba_mm.ops import multi_scan, order_tables, selective_scan


def scan(order, **kwargs):
    inputs = make_inputs(length=4)
    return selective_scan(**inputs, order=order, **kwargs)


@pytest.mark.parametrize(
    'order, message',
    [
        (torch.tensor([0, 1, 2, 2]), r'order: expected a permutation.*0\.\.3'),
        (torch.tensor([0, 1, 2, 4]), 'order: expected a permutation'),
        (torch.tensor([-1, 0, 1, 2]), 'order: expected a permutation'),
        (torch.arange(5), r'order: expected shape \(L,\) = \(4,\)'),
        (torch.zeros(1, 4, dtype=torch.int), r'order: .*\(1, 4\)'),
        (torch.arange(4.0), r'order: expected dtype int32 or int64.*\.int\('),
        (torch.empty(4, dtype=int, device='meta'), 'order: is on meta'),
    ],
)
@pytest.mark.parametrize('backend', [*usable_backends(), 'reference'])
def test_wrong_orders_are_named(order, message, backend):
    with pytest.raises(ValueError, match=message):
        scan(order, backend=backend)


def test_not_a_tensor():
    with pytest.raises(TypeError, match='order: expected a tensor, got list'):
        scan([0, 1, 2, 3])


def test_the_wrong_row_is_named():
    inputs = make_multi(2, length=4)
    orders = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 3]])
    with pytest.raises(ValueError, match='orders: row 1: expected a perm'):
        multi_scan(**inputs, orders=orders)


@pytest.fixture
def checks(monkeypatch):
    """Count the checks."""
    calls, check = [], order_tables._check_permutations

    def counting(orders):
        calls.append(orders)
        return check(orders)

    monkeypatch.setattr(order_tables, '_check_permutations', counting)
    yield calls
    calls.clear()


def test_an_order_is_checked_once(checks):
    order = torch.randperm(4)
    for _ in range(3):
        scan(order)
    assert len(checks) == 1
    scan(order.clone())
    assert len(checks) == 2


def test_a_changed_order_is_checked_again(checks):
    order = torch.tensor([3, 1, 0, 2])
    before = scan(order)
    order[:2] = torch.tensor([1, 3])
    assert not torch.equal(scan(order), before)
    order[0] = 3
    with pytest.raises(ValueError, match='permutation'):
        scan(order)
    with pytest.raises(ValueError, match='permutation'):
        scan(order)


@pytest.mark.parametrize('backend', usable_backends())
def test_a_change_that_is_not_seen_is_harmless(backend):
    """Autograd does not count what is done to ``.data``."""
    order = torch.tensor([3, 1, 0, 2], dtype=torch.int32)
    before = scan(order, backend=backend)
    order.data.fill_(1 << 30)
    assert torch.equal(scan(order, backend=backend), before)


def test_nothing_is_kept_of_orders_that_are_gone():
    gc.collect()
    before = len(order_tables._checked._entries)
    order = torch.randperm(4)
    scan(order, backend='torch')
    assert len(order_tables._checked._entries) == before + 1
    del order
    gc.collect()
    assert len(order_tables._checked._entries) == before


def test_orders_of_inference_mode():
    with torch.inference_mode():
        order = torch.tensor([3, 1, 0, 2])
        first = scan(order)
        order[:2] = torch.tensor([1, 3])
        assert not torch.equal(scan(order), first)
        with pytest.raises(ValueError, match='permutation'):
            scan(torch.zeros_like(order))


@pytest.mark.parametrize('backend', usable_backends())
def test_tables_of_inference_mode_serve_training(backend):
    order = torch.randperm(4)
    with torch.inference_mode():
        scan(order, backend=backend, reverse=True)
        scan(None, backend=backend, reverse=True)
    inputs = make_inputs(length=4)
    for given in (order, None):
        u = inputs['u'].clone().requires_grad_()
        arguments = {**inputs, 'u': u, 'order': given, 'backend': backend}
        selective_scan(**arguments, reverse=True).sum().backward()
        assert u.grad.abs().sum() > 0


@pytest.mark.parametrize('backend', usable_backends())
def test_tables_of_fake_mode_serve_real_tensors(backend):
    order = torch.randperm(5)
    inputs = make_inputs(length=5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {
            key: mode.from_tensor(value) if torch.is_tensor(value) else value
            for key, value in inputs.items()
        }
        for given in (order, None):
            out = selective_scan(
                **fake, order=given, reverse=True, backend='torch'
            )
            assert type(out) is not torch.Tensor
    for given in (order, None):
        out = selective_scan(
            **inputs, order=given, reverse=True, backend=backend
        )
        assert type(out) is torch.Tensor
