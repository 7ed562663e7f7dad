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
            (*tensors, [1]),
        )
    many = torch.randn(3, 8, 4, requires_grad=True)
    for tensors in ((x, many, torch.randn(3, 8)), (x, many, None)):
        torch.library.opcheck(
            torch.ops.transmamba_mm.causal_conv1d_silu.default,
            (*tensors, [0, 1, 1]),
        )


# ------------------------------------------------------ several directions


def by_one(x, weight, bias, reverse):
    """One direction after another."""
    return torch.stack(
        [
            causal_conv1d_silu(
                x, w, None if bias is None else bias[k], reverse[k]
            )
            for k, w in enumerate(weight)
        ],
        1,
    )


@pytest.mark.parametrize('kernel', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, *HALF_TOL])
@pytest.mark.parametrize('reverse', [[True], [False, True], [1, 0, 1]])
@pytest.mark.parametrize('with_bias', [True, False])
def test_directions(with_bias, reverse, dtype, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(library, 'unavailable', lambda: 'no compiler')
    K = len(reverse)
    x = torch.randn(2, 37, 40, dtype=dtype)[:, :, 5:29].requires_grad_()
    inputs = [x, torch.randn(K, 24, 4), torch.randn(K, 24)]
    inputs = [t.requires_grad_() for t in inputs[: 2 + with_bias]]
    padding = [None] * (3 - len(inputs))
    out = causal_conv1d_silu(*inputs, *padding, reverse)
    want = by_one(*inputs, *padding, reverse)
    assert torch.equal(out, want) and out.dtype == dtype
    # Stored direction after direction.
    assert out.shape == (2, K, 37, 24) and out.transpose(0, 1).is_contiguous()
    grad = torch.randn(2, K, 24, 37, dtype=dtype).mT
    found = torch.autograd.grad(out, inputs, grad)
    right = torch.autograd.grad(want, inputs, grad)
    tol = TOL if dtype == torch.float32 else 4 * HALF_TOL[dtype]
    for a, b in zip(found, right):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert relative_error(a, b.double()) < tol


@pytest.mark.parametrize('K', [None, 2])
def test_result_can_be_changed_in_place(K):
    shape = (8, 4) if K is None else (K, 8, 4)
    x = torch.randn(2, 5, 8, requires_grad=True)
    reverse = False if K is None else [False] * K
    causal_conv1d_silu(x, torch.randn(shape), None, reverse).mul_(2).sum()


def test_expanded_gradient_of_directions():
    x, weight = torch.randn(2, 9, 8), torch.randn(2, 8, 4)
    grads = []
    for function in (causal_conv1d_silu, by_one):
        leaf = x.clone().requires_grad_()
        function(leaf, weight, None, [False, True]).sum().backward()
        grads.append(leaf.grad)
    assert relative_error(grads[0], grads[1].double()) < TOL


def test_operations_of_directions_are_counted(monkeypatch):
    inputs, counts = (torch.randn(2, 40, 24), torch.randn(3, 24, 4)), []
    for reason in (library.unavailable(), 'no compiler'):
        monkeypatch.setattr(library, 'unavailable', lambda r=reason: r)
        with FlopCounterMode(display=False) as counter:
            causal_conv1d_silu(*inputs, reverse=[0, 1, 0])
        counts.append(counter.get_total_flops())
    assert counts == [3 * 2 * 2 * 40 * 24 * 4] * 2


def test_empty_directions():
    for shape in ((0, 5, 8), (2, 0, 8)):
        x = torch.randn(shape, requires_grad=True)
        out = causal_conv1d_silu(x, torch.randn(2, 8, 4), None, [True, False])
        out.sum().backward()
        assert x.grad.shape == shape


@pytest.mark.parametrize('dynamic', [False, True])
def test_directions_compile(dynamic):
    weight, bias = torch.randn(2, 8, 4), torch.randn(2, 8)
    weight.requires_grad_()

    def run(x):
        out = causal_conv1d_silu(x, weight, bias, (False, True))
        return out.mul_(2), causal_conv1d_silu(x, weight[0], bias[0], True)

    compiled = torch.compile(
        run, backend='aot_eager', fullgraph=True, dynamic=dynamic
    )
    for length in (12, 20):
        x = torch.randn(2, length, 8)
        for got, want in zip(compiled(x), run(x)):
            assert torch.equal(got, want) and got.stride() == want.stride()
        got, want = (
            torch.autograd.grad(f(x)[0].square().sum(), weight)[0]
            for f in (compiled, run)
        )
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


def test_directions_can_be_traced():
    x, weight = torch.randn(2, 9, 8), torch.randn(2, 8, 4)
    traced = torch.jit.trace(
        lambda x: causal_conv1d_silu(x, weight, None, [False, True]), x
    )
    y = torch.randn(2, 9, 8)
    want = causal_conv1d_silu(y, weight, None, [False, True])
    assert torch.equal(traced(y), want)


@pytest.mark.parametrize(
    'shape, reverse, message',
    [
        ((8, 4), [True], 'reverse: expected one bool'),
        ((2, 8, 4), True, 'reverse: expected a sequence of K = 2'),
        ((2, 8, 4), [True], 'reverse: expected a sequence of K = 2'),
        ((0, 8, 4), [], 'reverse: expected a sequence of K = 0 >= 1'),
    ],
)
def test_wrong_directions_are_named(shape, reverse, message):
    with pytest.raises(ValueError, match=message):
        causal_conv1d_silu(
            torch.zeros(2, 5, 8), torch.zeros(shape), None, reverse
        )


@pytest.mark.parametrize(
    'shapes, message',
    [
        (((4, 8), (8, 4), (8,)), r'x: expected shape \(B, L, D\)'),
        (((2, 5, 8), (7, 4), (8,)), r'weight: .* = \(8, width\), got \(7, 4'),
        (((2, 5, 8), (8, 1, 4), (8,)), r'weight: .*got \(8, 1, 4\)'),
        (((2, 5, 8), (8,), (8,)), r'weight: .*got \(8,\)'),
        (((2, 5, 8), (2, 8, 4), (8,)), r'bias: .*\(K, D\) = \(2, 8\), got'),
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
