# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The fused convolution against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from transmamba_mm.ops import causal_conv1d_silu
from transmamba_mm.ops.native import library

TOL = 2e-6
HALF_TOL = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def oracle(x, weight, bias, reverse):
    """Written down from the definition, one tap after another."""
    width, length = weight.shape[1], x.shape[1]
    x = x.flip(1) if reverse else x
    x = F.pad(x, (0, 0, width - 1, 0))
    y = sum(x[:, k : k + length] * weight[:, k] for k in range(width))
    y = y if bias is None else y + bias
    y = y * torch.sigmoid(y)
    return y.flip(1) if reverse else y


def relative_error(got, want):
    scale = want.abs().max().clamp_min(1e-30)
    return ((got.double() - want).abs().max() / scale).item()


def errors(x, weight, bias, reverse, seed=0):
    """Largest relative errors of the output and of each gradient."""
    inputs = [t for t in (x, weight, bias) if t is not None]
    ours = [t.detach().requires_grad_() for t in inputs]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    padding = [None] * (3 - len(inputs))
    out = causal_conv1d_silu(*ours, *padding, reverse=reverse)
    want = oracle(*wide, *padding, reverse)
    torch.manual_seed(seed)
    grad = torch.randn(out.shape)
    out.backward(grad.to(out.dtype))
    want.backward(grad.double())
    assert out.dtype == x.dtype and out.is_contiguous()
    pairs = [(out, want)] + [(a.grad, b.grad) for a, b in zip(ours, wide)]
    return [relative_error(a, b) for a, b in pairs]


def make(batch, length, channels, width, dtype=torch.float32):
    torch.manual_seed(length + channels)
    x = torch.randn(batch, length, channels, dtype=dtype)
    return x, torch.randn(channels, width), torch.randn(channels)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('width', [1, 2, 3, 4, 5])
@pytest.mark.parametrize('length', [1, 2, 3, 28, 29, 30, 32, 33, 58, 61])
def test_lengths_and_widths(isa, length, width, reverse):
    assert max(errors(*make(2, length, 20, width), reverse)) < TOL


@pytest.mark.parametrize('channels', [1, 8, 15, 16, 17, 40])
def test_channels(isa, channels):
    assert max(errors(*make(3, 37, channels, 4), True)) < TOL


def test_without_bias(isa):
    x, weight, _ = make(2, 40, 24, 4)
    assert max(errors(x, weight, None, False)) < TOL


@pytest.mark.parametrize('dtype', HALF_TOL)
@pytest.mark.parametrize('channels', [16, 21])
def test_half_precision_tokens(isa, dtype, channels):
    inputs = make(2, 40, channels, 4, dtype)
    assert max(errors(*inputs, False)) < HALF_TOL[dtype]


@pytest.mark.parametrize('reverse', [False, True])
def test_any_strides(isa, reverse):
    x, weight, bias = make(2, 70, 33, 4)
    base = errors(x, weight, bias, reverse)
    last = x.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.randn(2, 70, 80)[:, :, 5:38]
    expanded = torch.randn(1, 70, 33).expand(2, -1, -1)
    for view in (last, sliced, expanded):
        assert max(errors(view, weight, bias, reverse)) < TOL
    assert max(base) < TOL


def test_float64_is_served_without_the_kernel():
    x, weight, bias = make(2, 9, 6, 4, torch.float64)
    weight, bias = weight.double(), bias.double()
    assert max(errors(x, weight, bias, True)) < 1e-12
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(causal_conv1d_silu, inputs)


def test_missing_kernel_gives_the_same(monkeypatch):
    inputs = make(2, 40, 24, 4)
    want = causal_conv1d_silu(*inputs, reverse=True)
    monkeypatch.setattr(library, 'unavailable', lambda: 'no compiler')
    got = causal_conv1d_silu(*inputs, reverse=True)
    assert relative_error(got, want.double()) < TOL


def test_operations_are_counted_alike(monkeypatch):
    inputs, counts = make(2, 40, 24, 4), []
    for reason in (library.unavailable(), 'no compiler'):
        monkeypatch.setattr(library, 'unavailable', lambda r=reason: r)
        with FlopCounterMode(display=False) as counter:
            causal_conv1d_silu(*inputs)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 2 * 40 * 24 * 4] * 2


def test_empty():
    for shape in ((0, 5, 8), (2, 0, 8)):
        x = torch.randn(shape, requires_grad=True)
        out = causal_conv1d_silu(x, torch.randn(8, 4), torch.randn(8))
        out.sum().backward()
        assert out.shape == x.grad.shape == shape


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite_tokens_reach_what_sees_them(isa, value):
    x, weight, bias = make(1, 40, 16, 4)
    x[0, 10, 3] = value
    bad = ~causal_conv1d_silu(x, weight, bias).isfinite()
    seen = torch.zeros_like(bad)
    seen[0, 10:14, 3] = True
    # SiLU of minus infinity is minus zero.
    assert bool((bad <= seen).all()) and bad[0, 10:14, 3].any()


def test_threads_agree():
    inputs = make(5, 70, 40, 4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = errors(*inputs, False)
        torch.set_num_threads(2)
        assert errors(*inputs, False) == one
    finally:
        torch.set_num_threads(threads)


def test_operator_is_registered_soundly():
    x, weight, bias = make(2, 12, 8, 4)
    weight.requires_grad_()
    for tensors in ((x, weight, bias), (x, weight, None)):
        torch.library.opcheck(
            torch.ops.transmamba_mm.causal_conv1d_silu.default,
            (*tensors, True),
        )


@pytest.mark.parametrize(
    'shapes, message',
    [
        (((4, 8), (8, 4), (8,)), r'x: expected shape \(B, L, D\)'),
        (((2, 5, 8), (7, 4), (8,)), r'weight: .* = \(8, width\), got \(7, 4'),
        (((2, 5, 8), (8, 1, 4), (8,)), r'weight: .*got \(8, 1, 4\)'),
        (((2, 5, 8), (8, 4), (4,)), r'bias: expected shape .*\(8,\), got'),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        causal_conv1d_silu(*map(torch.zeros, shapes))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 90),
    # In fewer channels all sums over the tokens may cancel; see test_channels.
    st.integers(8, 50),
    st.integers(2, 4),
    st.booleans(),
)
def test_random_sizes(batch, length, channels, width, reverse):
    assert max(errors(*make(batch, length, channels, width), reverse)) < TOL
