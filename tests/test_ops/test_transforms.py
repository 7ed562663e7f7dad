# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Forward mode, second derivatives and ``torch.func`` on all operators.

Against loops and backward passes, which the operators' own tests prove.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap

from transmamba_mm.ops import (
    causal_conv1d_silu,
    invert_order,
    linear,
    multi_scan,
    reorder,
    rms_norm,
    selective_scan,
    selective_state_step,
    use_scan_backend,
)

TOL = 2e-5
BATCH, LENGTH, CHANNELS = 3, 5, 8


def conv(weight, x):
    return causal_conv1d_silu(x, weight, weight[:, 0])


def conv_both_ways(weight, x):
    return causal_conv1d_silu(
        x, torch.stack([weight, 2 * weight]), None, (False, True)
    )


def norm(weight, x):
    return rms_norm(x, weight[:, 0])


def scan(A, x):
    tokens = x.mT
    B = tokens[:, :4]
    return selective_scan(
        tokens, tokens, -A.square(), B, B, A[:, 0], tokens, A[:, 1], True
    )


def scan_all_ways(A, x, merge='sum'):
    # Made anew, so that the transforms have them as theirs.
    orders = torch.tensor([[3, 1, 0, 4, 2], [0, 4, 1, 2, 3]])
    tokens = x.mT
    return multi_scan(
        tokens,
        tokens,
        -A.square(),
        tokens[:, :4],
        tokens[:, 4:],
        delta_softplus=True,
        orders=orders,
        reverse=(False, True),
        merge=merge,
    )


def scan_stacked(A, x):
    return scan_all_ways(A, x, 'stack')


def product(weight, x):
    return linear(x, weight.mT)


def ordered(weight, x):
    return reorder(x * weight[:, 0], torch.tensor([4, 1, 0, 2, 3]))


SCANS = [scan, scan_all_ways, scan_stacked]
OTHERS = [conv, conv_both_ways, norm, product, ordered]


@pytest.fixture
def weight():
    torch.manual_seed(0)
    return torch.randn(CHANNELS, 4)


@pytest.fixture
def x():
    torch.manual_seed(2)
    return torch.randn(BATCH, LENGTH, CHANNELS)


def loss_of(function):
    return lambda weight, x: function(weight, x).square().sum()


def backward(loss, weight, x):
    leaf = weight.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, x), leaf)[0]


def assert_near(got, want):
    error = (got - want).abs().max() / want.abs().max()
    assert want.abs().max() > 0 and error < TOL


@pytest.mark.parametrize('function', SCANS + OTHERS)
def test_forward_mode(function, weight, x):
    loss, tangent = loss_of(function), torch.randn_like(weight)
    want = (backward(loss, weight, x) * tangent).sum()
    value, got = jvp(lambda w: loss(w, x), (weight,), (tangent,))
    assert_near(value, loss(weight, x))
    assert_near(got, want)
    assert_near(jacfwd(loss)(weight, x), backward(loss, weight, x))
    with forward_ad.dual_level():
        out = loss(forward_ad.make_dual(weight, tangent), x)
        assert_near(forward_ad.unpack_dual(out).tangent, want)


@pytest.mark.parametrize('function', SCANS + OTHERS)
def test_gradients_of_torch_func(function, weight, x):
    loss = loss_of(function)
    assert_near(grad(loss)(weight, x), backward(loss, weight, x))
    each = vmap(grad(lambda w, x: loss(w, x[None])), (None, 0))(weight, x)
    loop = [backward(loss, weight, x[i : i + 1]) for i in range(BATCH)]
    assert_near(each, torch.stack(loop))
    # The other way round, and over weights as of an ensemble.
    summed = grad(lambda w: vmap(lambda x: loss(w, x[None]))(x).sum())
    assert_near(summed(weight), backward(loss, weight, x))
    weights = torch.stack([weight, -weight, 2 * weight])
    many = vmap(function, (0, None))(weights, x)
    assert_near(many, torch.stack([function(w, x) for w in weights]))


def test_per_sample_gradients_of_every_scan_input(x):
    tensors = dict(
        u=x.mT,
        delta=x.mT.roll(1, 0),
        A=-torch.rand(CHANNELS, 3),
        B=torch.randn(BATCH, 3, LENGTH),
        C=torch.randn(BATCH, 3, LENGTH),
        D=torch.randn(CHANNELS),
        z=torch.randn(BATCH, CHANNELS, LENGTH),
        delta_bias=torch.randn(CHANNELS),
    )
    shared = ('A', 'D', 'delta_bias')
    axes = {name: None if name in shared else 0 for name in tensors}

    def loss(tensors):
        batch = {
            name: value if name in shared else value[None]
            for name, value in tensors.items()
        }
        return selective_scan(**batch, delta_softplus=True).square().sum()

    each = vmap(grad(loss), (axes,))(tensors)
    for i in range(BATCH):
        leaves = {
            name: (value if name in shared else value[i])
            .clone()
            .requires_grad_()
            for name, value in tensors.items()
        }
        loss(leaves).backward()
        for name, leaf in leaves.items():
            assert_near(each[name][i], leaf.grad)


@pytest.mark.parametrize('function', OTHERS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_second_derivatives(function, dtype, weight, x):
    def penalty(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (weight, x)]
        # What depends on each other must not be counted twice.
        out = function(leaves[0], leaves[1] + leaves[0][:LENGTH].sum())
        grads = torch.autograd.grad(
            out.square().sum(), leaves, create_graph=True
        )
        total = sum(grad.square().sum() for grad in grads)
        return torch.autograd.grad(total, leaves)

    for got, want in zip(penalty(dtype), penalty(torch.float64)):
        if dtype == torch.float32:
            assert_near(got.double(), want)
        else:
            assert (got - want).abs().max() < 0.1 * want.abs().max()


@pytest.mark.parametrize('function', OTHERS)
def test_hessian(function, weight, x):
    """Of float32, whose kernels have none of their own."""
    loss = loss_of(function)
    wide = hessian(loss)(weight.double(), x.double())
    assert_near(hessian(loss)(weight, x).double(), wide)


def test_only_the_reference_scan_has_second_derivatives(weight, x):
    def penalty():
        leaf = weight.clone().requires_grad_()
        out = scan(leaf, x).square().sum()
        (first,) = torch.autograd.grad(out, leaf, create_graph=True)
        return torch.autograd.grad(first.sum(), leaf)[0]

    with pytest.raises(RuntimeError, match='no second derivative'):
        penalty()
    with pytest.raises(RuntimeError, match='no second derivative'):
        grad(lambda w: grad(loss_of(scan))(w, x).sum())(weight)
    with use_scan_backend('reference'):
        want = grad(lambda w: grad(loss_of(scan))(w, x).sum())(weight)
        assert_near(penalty(), want)


def test_scan_backends_without_tangents_say_so(weight, x):
    with use_scan_backend('torch'):
        with pytest.raises(RuntimeError, match="'torch' has no tangents"):
            jvp(lambda w: scan(w, x), (weight,), (weight,))
        # No tangent, no difference.
        assert scan(weight, x).isfinite().all()


def test_state_step_has_tangents(x):
    state, B = torch.zeros(BATCH, CHANNELS, 4), torch.randn(BATCH, 4)

    def last(u):
        return selective_state_step(
            state.clone(), u, u, -torch.ones(CHANNELS, 4), B, B, None, u
        ).sum()

    u = x[:, 0]
    _, got = jvp(last, (u,), (torch.ones_like(u),))
    ahead, behind = (last(u.double() + h) for h in (1e-4, -1e-4))
    assert got.item() == pytest.approx(
        ((ahead - behind) / 2e-4).item(), rel=1e-3
    )


class Mixer(nn.Module):
    """Convolution, scan and norm of a fresh process's first call."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, 4))
        self.scale = nn.Parameter(torch.rand(CHANNELS))

    def forward(self, x):
        y = scan_all_ways(self.weight, conv(self.weight, x))
        return rms_norm(y.mT, self.scale)


def test_functional_call(x):
    model = Mixer()
    params = {k: p.detach() for k, p in model.named_parameters()}

    def loss(params, x):
        return functional_call(model, params, (x,)).square().sum()

    got = grad(loss)(params, x)
    loss(dict(model.named_parameters()), x).backward()
    for name, parameter in model.named_parameters():
        assert_near(got[name], parameter.grad)


# ------------------------------------------------------- what is no input


def call_conv(**changed):
    given = dict(
        x=torch.zeros(2, 5, 8),
        weight=torch.zeros(8, 4),
        bias=torch.zeros(8),
    )
    return causal_conv1d_silu(**{**given, **changed})


def call_norm(**changed):
    given = dict(x=torch.zeros(2, 8), weight=torch.zeros(8))
    return rms_norm(**{**given, **changed})


def call_scan(**changed):
    tokens = torch.zeros(2, 8, 5)
    given = dict(u=tokens, delta=tokens, A=torch.zeros(8, 4))
    given |= dict(B=tokens[:, :4], C=tokens[:, :4])
    return selective_scan(**{**given, **changed})


def call_step(**changed):
    u, B = torch.zeros(2, 8), torch.zeros(2, 4)
    given = dict(state=torch.zeros(2, 8, 4), u=u, delta=u)
    given |= dict(A=torch.zeros(8, 4), B=B, C=B)
    return selective_state_step(**{**given, **changed})


ARGUMENTS = {
    call_conv: ('x', 'weight', 'bias'),
    call_norm: ('x', 'weight'),
    call_scan: ('u', 'A', 'B', 'z'),
    call_step: ('state', 'u', 'A', 'z'),
}


@pytest.mark.parametrize('call', ARGUMENTS)
def test_what_is_no_tensor_is_named(call):
    for name in ARGUMENTS[call]:
        for wrong, message in (
            (np.zeros((2, 5, 8), np.float32), 'expected a tensor, got nd'),
            ([1.0], 'expected a tensor, got list'),
            (torch.zeros(2, 8, dtype=torch.complex64), 'complex tensors'),
            (torch.zeros(2, 8, dtype=torch.int64), 'expected a floating-'),
        ):
            with pytest.raises(TypeError, match=f'{name}: {message}'):
                call(**{name: wrong})
        with pytest.raises(ValueError, match=rf'{name}: .*\(\)'):
            call(**{name: torch.zeros(())})
        meta = torch.zeros(2, 8, 5, device='meta')
        with pytest.raises(ValueError, match=r'is on \w+, but \w+ is on'):
            call(**{name: meta})


@pytest.mark.parametrize('shape', [(0, 5, 8), (2, 0, 8), (2, 5, 0)])
def test_nothing_comes_of_nothing(shape):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(shape[-1], 4, requires_grad=True)
    out = causal_conv1d_silu(x, weight), rms_norm(x, weight[:, 0])
    assert out[0].shape == out[1].shape == shape
    sum(y.sum() for y in out).backward()
    assert x.grad.shape == shape and not weight.grad.any()


def test_orders_that_are_no_tensors_are_named():
    with pytest.raises(TypeError, match='order: expected a tensor, got list'):
        invert_order([1, 0])
    with pytest.raises(TypeError, match='tokens: expected a tensor, got nd'):
        reorder(np.zeros((1, 2, 3)), torch.tensor([1, 0]))


def test_the_other_layout_is_named():
    for shape in ((2, 8, 5), (2, 8, 4)):
        with pytest.raises(ValueError, match=r'x: .* D = 8.*\(B, D, L\)'):
            call_conv(x=torch.zeros(shape))
    tokens = torch.zeros(2, 5, 8)
    with pytest.raises(ValueError, match=r'A: .*; if u, .* is \(B, L, D\)'):
        call_scan(u=tokens, delta=tokens)


@pytest.mark.parametrize('eps', [-1e-5, float('nan')])
def test_eps_that_makes_no_number_is_named(eps):
    with pytest.raises(ValueError, match='eps: expected a number of at'):
        call_norm(eps=eps)
