# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import pytest
import torch
from mmpretrain.models.utils import build_norm_layer

from transmamba_mm.models.layers import RMSNorm

DOUBLE_TOL = 1e-12
FLOAT_TOL = 1e-6
# One unit in the last place of each.
ULP = {torch.float16: 2**-10, torch.bfloat16: 2**-7}


def direct(x, weight, eps):
    x = x.double()
    mean_square = (x * x).sum(-1, keepdim=True) / x.shape[-1]
    return x / (mean_square + eps).sqrt() * weight.double()


def norm_of(size, dtype=torch.float32, **kwargs):
    norm = RMSNorm(size, **kwargs)
    torch.nn.init.normal_(norm.weight)
    return norm.to(dtype)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float32, FLOAT_TOL), (torch.float64, DOUBLE_TOL)],
)
@pytest.mark.parametrize('eps', [1e-5, 1e-1])
def test_equals_the_formula(dtype, tolerance, eps):
    norm = norm_of(12, dtype, eps=eps)
    x = 3 * torch.randn(2, 5, 12, dtype=dtype) + 1
    out = norm(x)
    assert out.dtype == dtype
    expected = direct(x, norm.weight, eps)
    torch.testing.assert_close(
        out.double(), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_keeps_float32_statistics(dtype):
    norm = norm_of(12, dtype)
    # Squares of these overflow float16; small ones lose all their bits.
    for scale in (1.0, 1000.0, 1e-3):
        x = (scale * torch.randn(4, 12)).to(dtype).requires_grad_()
        out = norm(x)
        assert out.dtype == dtype
        expected = direct(x, norm.weight, 1e-5)
        torch.testing.assert_close(
            out.double(), expected, rtol=ULP[dtype], atol=ULP[dtype]
        )
        out.float().sum().backward()
        assert x.grad.isfinite().all()


def test_is_built_by_name_with_eps():
    norm = build_norm_layer(dict(type='transmamba.RMSNorm', eps=0.5), 6)
    assert isinstance(norm, RMSNorm)
    assert norm.eps == 0.5
    assert [n for n, _ in norm.named_parameters()] == ['weight']


def test_gradients():
    norm = norm_of(4, torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
