# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transmamba_mm.ops import invert_order, reorder


@given(st.permutations(range(9)))
def test_invert_order_undoes_reorder(values):
    order = torch.tensor(values)
    tokens = torch.randn(2, 9, 3)
    inverse = invert_order(order)
    assert torch.equal(reorder(reorder(tokens, order), inverse), tokens)
    assert torch.equal(inverse[order], torch.arange(9))


def test_reorder_visits_tokens_in_order():
    tokens = torch.arange(4.0).view(1, 4, 1)
    order = torch.tensor([2, 0, 3, 1])
    assert reorder(tokens, order).flatten().tolist() == [2, 0, 3, 1]


def test_reorder_may_select_and_repeat_tokens():
    tokens = torch.arange(3.0).view(1, 3, 1).requires_grad_()
    out = reorder(tokens, torch.tensor([1, 1, 0]))
    out.sum().backward()
    assert tokens.grad.flatten().tolist() == [1, 2, 0]


@pytest.mark.parametrize('dtype', [torch.int32, torch.int64])
def test_dtype_is_kept(dtype):
    order = torch.tensor([1, 2, 0], dtype=dtype)
    assert invert_order(order).dtype == dtype
    assert invert_order(order).tolist() == [2, 0, 1]


def test_empty_order():
    empty = torch.arange(0)
    assert invert_order(empty).shape == (0,)
    assert reorder(torch.ones(2, 0, 3), empty).shape == (2, 0, 3)


@pytest.mark.parametrize('bad', [[0, 0, 1], [1, 2, 3], [-1, 0, 1]])
def test_not_a_permutation(bad):
    with pytest.raises(ValueError, match=r'each of 0\.\.2 exactly once'):
        invert_order(torch.tensor(bad))


def test_wrong_shapes():
    with pytest.raises(ValueError, match='order: expected an int32 or int64'):
        invert_order(torch.ones(3))
    with pytest.raises(ValueError, match=r'order: .*shape \(1, 3\)'):
        reorder(torch.ones(1, 3, 1), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r'tokens: expected shape \(B, L, C'):
        reorder(torch.ones(3, 1), torch.arange(3))
