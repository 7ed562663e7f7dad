# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The mixer of Vim and VideoMamba: its taps, its scans, its derivatives."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from transmamba_mm.models.layers import BidirectionalMixer

# float32 sums in another order, for values near one.
CLOSE = dict(rtol=1e-4, atol=1e-5)
# A step counts as changed beyond rounding.
CHANGED = 1e-9

FORWARD, BACKWARD = 'raster', 'raster_reverse'
TYPES = ('v1', 'v2')


def mixer_of(bimamba_type='v2', dims=8, seed=0, **kwargs):
    kwargs.setdefault('d_state', 4)
    torch.manual_seed(seed)
    mixer = BidirectionalMixer(dims, bimamba_type=bimamba_type, **kwargs)
    randomise(mixer, seed)
    return mixer


def record(taps):
    """Hooks all taps; returns what they show and the hooks' handles."""
    seen, handles = {}, []
    for kind in ('inner', 'out'):
        for name, tap in getattr(taps, kind).items():
            handles.append(
                tap.register_forward_hook(
                    lambda m, args, out, key=(kind, name): seen.update(
                        {key: (out, args[1])}
                    )
                )
            )
    return seen, handles


# ----------------------------------------------------------------- taps


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(TYPES),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
    st.booleans(),
)
def test_taps_sum_to_the_output(kind, length, layer_scale, bias, divide_out):
    mixer = mixer_of(
        kind, layer_scale=layer_scale, bias=bias, divide_out=divide_out
    )
    x = torch.randn(2, length, 8)
    plain = mixer(x, (1, length))
    seen, _ = record(mixer.taps)
    out = mixer(x, (1, length))
    torch.testing.assert_close(out, plain, **CLOSE)
    assert len(seen) == 4
    gamma = 1.0 if mixer.gamma is None else mixer.gamma
    total = mixer.out_proj.bias * gamma if bias else torch.zeros(8)
    for name in (FORWARD, BACKWARD):
        inner, grid = seen['inner', name]
        tokens, _ = seen['out', name]
        assert grid == (1, length)
        assert inner.shape == (2, length, mixer.d_inner)
        projected = inner @ mixer.out_proj.weight.T * gamma
        torch.testing.assert_close(projected, tokens, **CLOSE)
        # Taps show tokens in scan order.
        total = total + (tokens.flip(1) if name == BACKWARD else tokens)
    torch.testing.assert_close(total.expand_as(out), out, **CLOSE)


@pytest.mark.parametrize('kind', TYPES)
def test_taps_cost_nothing_unless_hooked(kind, monkeypatch):
    mixer = mixer_of(kind)
    x = torch.randn(1, 6, 8)
    inner, rank = mixer.d_inner, mixer.dt_rank
    ways = 1 if kind == 'v1' else 2
    # in_proj, x_proj, dt_proj, out_proj on six tokens.
    widths = inner * 8 * 3 + ways * inner * (2 * rank + 2 * 4)
    products = []
    linear = F.linear

    def counting(tokens, weight, *args):
        products.append(tokens.numel() * weight.shape[0])
        return linear(tokens, weight, *args)

    monkeypatch.setattr(F, 'linear', counting)

    def run():
        products.clear()
        return mixer(x, (2, 3)), sum(products)

    plain, cost = run()
    assert cost == 6 * widths
    _, handles = record(mixer.taps)
    tapped, cost = run()
    assert cost == 6 * (widths + inner * 8)  # one projection more
    torch.testing.assert_close(tapped, plain, **CLOSE)
    for handle in handles:
        handle.remove()
    again, cost = run()
    assert cost == 6 * widths
    assert again.equal(plain)


def test_one_tap_does_not_wake_the_other():
    mixer = mixer_of()
    seen = []
    mixer.taps.out[BACKWARD].register_forward_hook(
        lambda m, args, out: seen.append(out)
    )
    mixer.taps.out[FORWARD].forward = pytest.fail  # nobody asked for it
    mixer(torch.randn(1, 6, 8), (2, 3))
    assert [out.shape for out in seen] == [(1, 6, 8)]
    assert not [k for k in mixer.state_dict() if 'tap' in k]


@pytest.mark.parametrize('name', [FORWARD, BACKWARD])
def test_a_loss_on_a_tap_reaches_its_direction_alone(name):
    mixer = mixer_of(bias=True)
    seen, _ = record(mixer.taps)
    mixer(torch.randn(1, 6, 8), (2, 3))
    seen['out', name][0].square().sum().backward()
    mine = name == BACKWARD
    for parameter, suffix_is_b in (
        (mixer.conv1d.weight, False),
        (mixer.conv1d_b.weight, True),
        (mixer.A_log, False),
        (mixer.A_b_log, True),
        (mixer.D, False),
        (mixer.D_b, True),
    ):
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (suffix_is_b == mine)
    assert mixer.in_proj.weight.grad.any()
    assert mixer.out_proj.weight.grad.any()
    assert mixer.out_proj.bias.grad is None  # no direction owns the bias


# ---------------------------------------------------------------- scans


def test_each_direction_sees_what_it_visited_before():
    """Token p changes exactly the steps from its own visit on."""
    length = 7
    mixer = mixer_of().double()
    seen, _ = record(mixer.taps)
    x = torch.randn(1, length, 8, dtype=torch.double)

    def taps(tokens):
        with torch.no_grad():
            mixer(tokens, (1, length))
        return {name: seen['out', name][0] for name in (FORWARD, BACKWARD)}

    base = taps(x)
    for place in range(length):
        bumped = x.clone()
        bumped[:, place] += 1
        for name, step in (
            (FORWARD, place),
            (BACKWARD, length - 1 - place),
        ):
            changed = (taps(bumped)[name] - base[name]).abs().amax(-1)[0]
            assert (changed > CHANGED).tolist() == [
                t >= step for t in range(length)
            ]


def equations(mixer, x):
    """Both directions, unmerged, in a plain loop; (B, L, d_inner) each."""
    u_raw, z = mixer.in_proj(x).split(mixer.d_inner, -1)
    length, N = x.shape[1], mixer.d_state
    v1 = mixer.bimamba_type == 'v1'
    results = []
    for backward in (False, True):
        own = '_b' if backward and not v1 else ''
        conv, x_proj, dt_proj, D = (
            getattr(mixer, name + own)
            for name in ('conv1d', 'x_proj', 'dt_proj', 'D')
        )
        A = -(mixer.A_b_log if backward else mixer.A_log).exp()
        # v1 convolves forward for both.
        flip_conv = backward and not v1
        tokens = u_raw.flip(1) if flip_conv else u_raw
        padded = F.pad(tokens.mT, (conv.kernel_size[0] - 1, 0))
        u = F.conv1d(padded, conv.weight, conv.bias, groups=mixer.d_inner)
        u = F.silu(u).mT
        u = u.flip(1) if flip_conv else u
        dt, B, C = x_proj(u).split([mixer.dt_rank, N, N], -1)
        delta = F.softplus(dt_proj(dt)).unsqueeze(-1)
        steps = range(length - 1, -1, -1) if backward else range(length)
        h = u.new_zeros(len(x), mixer.d_inner, N)
        y = [None] * length
        for t in steps:
            into = delta[:, t] * B[:, t].unsqueeze(1)
            h = (delta[:, t] * A).exp() * h + into * u[:, t].unsqueeze(-1)
            y[t] = (h * C[:, t].unsqueeze(1)).sum(-1) + D * u[:, t]
        results.append(torch.stack(y, 1) * F.silu(z))
    return results


@pytest.mark.parametrize('divide_out', [True, False])
@pytest.mark.parametrize('kind', TYPES)
def test_mixer_equals_the_equations_written_down(kind, divide_out):
    mixer = mixer_of(kind, divide_out=divide_out, layer_scale=0.4, bias=True)
    mixer = mixer.double()
    x = torch.randn(2, 6, 8, dtype=torch.double)
    total = sum(equations(mixer, x))
    if kind == 'v2' and divide_out:  # v1 never divides
        total = total / 2
    expected = mixer.out_proj(total) * mixer.gamma
    actual = mixer(x, (2, 3))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('tapped', [False, True])
@pytest.mark.parametrize('kind', TYPES)
def test_gradients_in_float64(kind, tapped):
    mixer = mixer_of(kind, dims=4, d_state=2, expand=1, layer_scale=0.5)
    mixer = mixer.double()
    if tapped:
        record(mixer.taps)
    names = [name for name, _ in mixer.named_parameters()]
    x = torch.randn(1, 5, 4, dtype=torch.double, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(
            mixer, dict(zip(names, values)), (x, (1, 5))
        )

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()))


# ------------------------------------------------------------- settings


def test_sizes_follow_the_settings():
    mixer = mixer_of(dims=20, d_state=3, expand=1.5, d_conv=3, conv_bias=False)
    shapes = {k: tuple(v.shape) for k, v in mixer.state_dict().items()}
    one = {
        'conv1d.weight': (30, 1, 3),
        'x_proj.weight': (2 + 2 * 3, 30),
        'dt_proj.weight': (30, 2),
        'dt_proj.bias': (30,),
    }
    both = dict(one)
    for name, shape in one.items():
        stem, leaf = name.split('.')
        both[f'{stem}_b.{leaf}'] = shape
    assert shapes == {
        **both,
        'in_proj.weight': (60, 20),
        'out_proj.weight': (20, 30),
        'A_log': (30, 3),
        'A_b_log': (30, 3),
        'D': (30,),
        'D_b': (30,),
    }
    assert mixer(torch.randn(1, 6, 20), (2, 3)).shape == (1, 6, 20)
    v1 = {k for k in mixer_of('v1').state_dict() if '_b' in k}
    assert v1 == {'A_b_log'}
    assert mixer_of(dt_rank=5).dt_proj_b.in_features == 5


def test_start_values_of_the_two_directions():
    mixer = BidirectionalMixer(32, dt_min=0.01, dt_max=0.5, layer_scale=0.25)
    steps = F.softplus(mixer.dt_proj.bias)
    slack = 1e-5
    assert 0.01 - slack <= steps.min() <= steps.max() <= 0.5 + slack
    assert mixer.dt_proj_b.bias.eq(0).all()
    for A_log in (mixer.A_log, mixer.A_b_log):
        expected = torch.arange(1.0, 17).expand(64, 16)
        torch.testing.assert_close(A_log.exp().detach(), expected)
    assert mixer.D.eq(1).all()
    assert mixer.D_b.eq(1).all()
    assert mixer.gamma.eq(0.25).all()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'v1' or 'v2', got 'v3'"):
        BidirectionalMixer(8, bimamba_type='v3')
