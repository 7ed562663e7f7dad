# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The linear map equals PyTorch's, whichever product runs it."""

import pytest
import torch
import torch.nn.functional as F

from transmamba_mm.ops import linear
from transmamba_mm.ops.linear import _OneDNNLinear

TOLERANCE = dict(rtol=1e-4, atol=1e-4)
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='PyTorch without oneDNN'
)


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


@needs_onednn
@pytest.mark.parametrize('strided', [False, True])
@pytest.mark.parametrize('shape', [(7, 24), (2, 5, 12), (2, 3, 4, 16)])
def test_onednn_equals_pytorch(shape, strided):
    tensors = inputs(shape, 20, strided)
    ours = _OneDNNLinear.apply(*tensors)
    theirs = F.linear(*tensors)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    # Expanded, as autograd hands it back from a sum.
    grad = torch.randn(ours.shape[-1]).expand_as(ours)
    for a, b in zip(
        torch.autograd.grad(ours, tensors, grad),
        torch.autograd.grad(theirs, tensors, grad),
    ):
        torch.testing.assert_close(a, b, **TOLERANCE)


@needs_onednn
def test_onednn_without_bias_and_without_input_gradient():
    x, weight, _bias = inputs((6, 8), 4)
    x = x.detach()
    out = _OneDNNLinear.apply(x, weight, None)
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
