# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""RMS normalisation against its definition in float64."""

import pytest
import torch

from transmamba_mm.ops import rms_norm
from transmamba_mm.ops.native import library

TOL = 2e-6


def oracle(x, weight, eps):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def errors(x, weight, eps=1e-5):
    ours = [t.detach().requires_grad_() for t in (x, weight)]
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    out, want = rms_norm(*ours, eps), oracle(*wide, eps)
    torch.manual_seed(1)
    grad = torch.randn(out.shape)
    out.backward(grad.to(out.dtype))
    want.backward(grad.double())
    assert out.dtype == x.dtype and out.shape == x.shape
    pairs = [(out, want)] + [(a.grad, b.grad) for a, b in zip(ours, wide)]
    return [
        ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs
    ]


@pytest.mark.parametrize('shape', [(7,), (3, 16), (2, 5, 17), (9, 192)])
@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e3])
def test_shapes_and_scales(isa, shape, scale):
    torch.manual_seed(0)
    x = scale * torch.randn(shape)
    assert max(errors(x, torch.randn(shape[-1]))) < TOL


def test_any_strides(isa):
    x = torch.randn(6, 40, 5).transpose(1, 2)
    assert max(errors(x, torch.randn(80)[::2])) < TOL


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_has_wide_statistics(dtype):
    x = (200 * torch.randn(4, 64)).to(dtype)  # squares overflow float16
    assert errors(x, torch.randn(64))[0] < 1e-2


def test_float64():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_norm, (x, weight))


def test_missing_kernel_gives_the_same(monkeypatch):
    x, weight = torch.randn(4, 24), torch.randn(24)
    want = rms_norm(x, weight)
    monkeypatch.setattr(library, 'unavailable', lambda: 'no compiler')
    assert torch.allclose(rms_norm(x, weight), want, atol=1e-6)


def test_threads_agree():
    x, weight = torch.randn(50, 24), torch.randn(24)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert max(errors(x, weight)) < TOL
    finally:
        torch.set_num_threads(threads)


def test_zero_rows_and_no_rows():
    assert torch.equal(
        rms_norm(torch.zeros(2, 8), torch.ones(8)), torch.zeros(2, 8)
    )
    x = torch.zeros(0, 8, requires_grad=True)
    rms_norm(x, torch.ones(8)).sum().backward()
    assert x.grad.shape == (0, 8)


def test_one_input_may_need_no_gradient():
    x, weight = torch.randn(4, 8), torch.randn(8, requires_grad=True)
    rms_norm(x, weight).sum().backward()
    assert weight.grad is not None and x.grad is None


def test_operator_is_registered_soundly():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8)
    torch.library.opcheck(
        torch.ops.transmamba_mm.rms_norm.default, (x, weight, 1e-5)
    )


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r'weight: expected shape \(8,\)'):
        rms_norm(torch.zeros(2, 8), torch.zeros(4))
