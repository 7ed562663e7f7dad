# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The linear map equals PyTorch's, whichever product runs it."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transmamba_mm.ops import linear
from transmamba_mm.ops.linear import with_fast_linears

# The package's attribute of this name is the function.
module = sys.modules['transmamba_mm.ops.linear']

TOLERANCE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture
def onednn(monkeypatch):
    """Has oneDNN multiply on every machine, whatever the size."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip('PyTorch without oneDNN')
    monkeypatch.setattr(module, '_SMALLEST', 0)
    monkeypatch.setattr(module, '_onednn_pays', lambda: True)


def inputs(shape, out_features, strided=False):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=generator)
    weight = torch.randn(out_features, shape[-1] * 2, generator=generator)
    weight = weight[:, : shape[-1]]  # columns of a wider matrix
    bias = torch.randn(out_features, generator=generator)
    if strided:
        x = x.mT.contiguous().mT
    else:
        weight = weight.contiguous()
    return [t.requires_grad_() for t in (x, weight, bias)]


@pytest.mark.parametrize('strided', [False, True])
@pytest.mark.parametrize('shape', [(7, 24), (2, 5, 12), (2, 3, 4, 16)])
def test_onednn_equals_pytorch(shape, strided, onednn):
    tensors = inputs(shape, 20, strided)
    ours = linear(*tensors)
    theirs = F.linear(*tensors)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    # Expanded, as autograd hands it back from a sum.
    grad = torch.randn(ours.shape[-1]).expand_as(ours)
    for a, b in zip(
        torch.autograd.grad(ours, tensors, grad),
        torch.autograd.grad(theirs, tensors, grad),
    ):
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_onednn_without_bias_and_without_input_gradient(onednn):
    x, weight, _bias = inputs((6, 8), 4)
    x = x.detach()
    out = linear(x, weight, None)
    out.sum().backward()
    expected = torch.ones(6, 4).t() @ x
    torch.testing.assert_close(weight.grad, expected, **TOLERANCE)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_public_function(dtype):
    x, weight, bias = (t.detach().to(dtype) for t in inputs((256, 64), 128))
    torch.testing.assert_close(
        linear(x, weight, bias), F.linear(x, weight, bias), **TOLERANCE
    )


def test_autocast_is_respected():
    x, weight, bias = (t.detach() for t in inputs((256, 64), 128))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


def test_gradients_have_gradients(onednn):
    tensors = [t.detach().double() for t in inputs((3, 5, 6), 4)]

    def penalty(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = function(*leaves).square().sum()
        grads = torch.autograd.grad(out, leaves, create_graph=True)
        total = sum(grad.square().sum() for grad in grads)
        return torch.autograd.grad(total, leaves)

    for got, want in zip(
        penalty(linear, torch.float32), penalty(F.linear, torch.float64)
    ):
        torch.testing.assert_close(got.double(), want, **TOLERANCE)


def test_what_does_not_fit_is_named_by_pytorch(onednn):
    x, weight, bias = (t.detach() for t in inputs((6, 8), 4))
    for wrong in ((x[:, 1:], weight), (x, weight, bias[1:]), (x.numpy(),)):
        with pytest.raises((RuntimeError, TypeError)) as ours:
            linear(*wrong, *[weight][: 2 - len(wrong)])
        assert 'primitive' not in str(ours.value)


def test_plain_modules_use_it(onednn, monkeypatch):
    """And their hooks are called, and the mode ends."""
    calls = []
    fast = linear

    def counted(*args):
        calls.append(args)
        return fast(*args)

    monkeypatch.setattr(module, 'linear', counted)
    layer = nn.Sequential(nn.Linear(8, 4), nn.GELU())
    x, seen = torch.randn(2, 3, 8), []
    layer[0].register_forward_hook(lambda *args: seen.append(1))
    out = with_fast_linears(layer, x)
    assert len(calls) == len(seen) == 1
    torch.testing.assert_close(out, layer(x))
    assert len(calls) == 1


class Doubled(torch.Tensor):
    """A weight with a product of its own, as quantised ones have."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        out = super().__torch_function__(function, types, args, kwargs)
        return 2 * out if function is F.linear else out


@pytest.mark.parametrize('shared', [False, True])
def test_weights_with_a_product_of_their_own(shared, onednn):
    layer = nn.Linear(6, 4, bias=False)
    x, plain = torch.randn(5, 6), layer.weight.detach()
    wanted = 2 * (x @ plain.mT)
    layer.weight = nn.Parameter(plain.as_subclass(Doubled))
    found = with_fast_linears(layer, x) if shared else linear(x, layer.weight)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), wanted)


def test_the_result_may_be_changed_in_place(onednn):
    tensors = inputs((7, 24), 20)
    factor = torch.tensor(3.0, requires_grad=True)
    found, wanted = linear(*tensors), F.linear(*tensors)
    found.mul_(factor)
    ours = torch.autograd.grad(found.sum(), tensors)
    theirs = torch.autograd.grad((wanted * factor).sum(), tensors)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, **TOLERANCE)
    with torch.no_grad():
        out = linear(*tensors)
    out.mul_(factor)


def test_onednn_can_be_switched_off(onednn, monkeypatch):
    monkeypatch.setattr(module, '_product', None)
    x, weight, bias = inputs((7, 24), 20)
    with torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight, bias)
    with pytest.raises(TypeError):
        linear(x, weight, bias)
