# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The mixer's taps, its scans and its derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import SNAKES, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.models.layers import PlainMambaMixer
from transmamba_mm.models.layers.plain_mamba_mixer import move_rows

# float32 sums in another order, for values near one.
CLOSE = dict(rtol=1e-4, atol=1e-5)
# A step counts as changed beyond rounding.
CHANGED = 1e-6

EIGHT = (*SNAKES, 'raster', 'raster_reverse', 'column', 'column_reverse')


def mixer_of(directions=SNAKES, dims=8, seed=0, **kwargs):
    kwargs.setdefault('d_state', 4)
    kwargs.setdefault('conv_size', 3)
    torch.manual_seed(seed)
    mixer = PlainMambaMixer(dims, directions, **kwargs)
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


def unpermute(tokens, order):
    return torch.empty_like(tokens).index_copy(1, order, tokens)


# ----------------------------------------------------------------- taps


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sets(st.sampled_from(EIGHT), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
)
def test_taps_sum_to_the_output(grid, directions, layer_scale, bias):
    directions = sorted(directions)
    mixer = mixer_of(directions, layer_scale=layer_scale, bias=bias)
    seen, _ = record(mixer.taps)
    x = torch.randn(2, grid[0] * grid[1], 8)
    out = mixer(x, grid)
    assert len(seen) == 2 * len(directions)
    gamma = 1.0 if mixer.gamma is None else mixer.gamma
    total = mixer.out_proj.bias * gamma if bias else torch.zeros(8)
    for name in directions:
        inner, inner_grid = seen['inner', name]
        tokens, tap_grid = seen['out', name]
        assert inner_grid == tap_grid == grid
        assert inner.shape == (2, grid[0] * grid[1], 16)
        projected = inner @ mixer.out_proj.weight.T * gamma
        torch.testing.assert_close(projected, tokens, **CLOSE)
        total = total + unpermute(tokens, scan_order(name, *grid))
    torch.testing.assert_close(total.expand_as(out), out, **CLOSE)


def test_taps_cost_nothing_unless_hooked(monkeypatch):
    mixer = mixer_of()
    x = torch.randn(1, 6, 8)
    inner, rank = mixer.d_inner, mixer.dt_rank
    # in_proj, x_proj, dt_proj, out_proj on six tokens.
    widths = 8 * 2 * inner + inner * (rank + 2 * 4) + rank * inner + inner * 8
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
    seen, handles = record(mixer.taps)
    assert all(map(mixer.taps.active, SNAKES))
    tapped, cost = run()
    assert len(seen) == 2 * len(SNAKES)
    # One projection more per direction, at most.
    assert 6 * widths < cost <= 6 * (widths + len(SNAKES) * inner * 8)
    torch.testing.assert_close(tapped, plain, **CLOSE)
    for handle in handles:
        handle.remove()
    seen.clear()
    again, cost = run()
    assert cost == 6 * widths
    assert not seen
    assert again.equal(plain)


def test_one_tap_does_not_wake_the_others():
    mixer = mixer_of()
    name, seen = SNAKES[1], []
    tap = mixer.taps.out[name]
    tap.register_forward_hook(lambda m, args, out: seen.append(out))
    for other in SNAKES:
        assert mixer.taps.active(other) == (other == name)
        other_tap = mixer.taps.inner[other]
        other_tap.forward = pytest.fail  # nobody asked for it
    mixer(torch.randn(1, 6, 8), (2, 3))
    assert [out.shape for out in seen] == [(1, 6, 8)]


def test_taps_hold_no_state():
    mixer = mixer_of()
    assert not [k for k in mixer.state_dict() if 'tap' in k]
    assert not list(mixer.taps.parameters())
    assert not list(mixer.taps.buffers())


def test_a_loss_on_taps_reaches_the_parameters():
    mixer = mixer_of()
    seen, _ = record(mixer.taps)
    mixer(torch.randn(1, 6, 8), (2, 3))
    seen['out', SNAKES[2]][0].square().sum().backward()
    for name in ('in_proj', 'x_proj', 'dt_proj', 'out_proj', 'conv2d'):
        assert getattr(mixer, name).weight.grad.abs().sum() > 0
    assert mixer.out_proj.bias.grad is None  # no direction owns the bias


# ---------------------------------------------------------------- scans


class Constant(nn.Module):
    """Returns the same tensor for every input."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


@torch.no_grad()
def scan(mixer, u, params, grid):
    """Each direction's tap of a mixer that is fed ``u`` and ``params``.

    Args:
        u (Tensor): What the scans read, before SiLU, raster order.
        params (Tensor, optional): What ``x_proj`` would give; None for that.
    """
    given = torch.cat([u, torch.ones_like(u)], dim=-1)  # the gate is constant
    modules = dict(in_proj=Constant(given), conv2d=nn.Identity())
    if params is not None:
        modules['x_proj'] = Constant(params.expand(len(u), -1, -1))
    real = {name: getattr(mixer, name) for name in modules}
    seen, handles = record(mixer.taps)
    for name, module in modules.items():
        setattr(mixer, name, module)
    mixer(u, grid)
    for name, module in real.items():
        setattr(mixer, name, module)
    for handle in handles:
        handle.remove()
    return {name: seen['inner', name][0] for name in mixer.directions}


def first_changed(a, b):
    """First step at which each sample of ``b`` differs from ``a``'s one."""
    changed = (b - a).abs().amax(-1) > CHANGED
    assert changed.any(1).all()
    return changed.int().argmax(1)


@pytest.mark.parametrize('grid', [(3, 4), (1, 5), (5, 1), (4, 3)])
def test_scans_follow_the_published_order(grid):
    """Tokens enter in the direction's order, parameters in raster order."""
    length = grid[0] * grid[1]
    mixer = mixer_of(EIGHT).double()
    u = torch.rand(1, length, mixer.d_inner, dtype=torch.double)
    params = mixer.x_proj(F.silu(u))
    # Sample p is the same but for raster position p.
    bump = torch.eye(length).double().unsqueeze(-1)
    base = scan(mixer, u, params, grid)
    by_value = scan(mixer, u + bump, params, grid)
    by_parameter = scan(mixer, u.expand(length, -1, -1), params + bump, grid)
    together = scan(mixer, u + bump, None, grid)
    raster = torch.arange(length)
    for name in EIGHT:
        visit = scan_order(name, *grid).argsort()
        assert first_changed(base[name], by_value[name]).equal(visit)
        assert first_changed(base[name], by_parameter[name]).equal(raster)
        # Causal in both: nothing earlier than either entry changes.
        first = first_changed(base[name], together[name])
        assert (first >= torch.minimum(visit, raster)).all()


def test_mixer_equals_the_equations_written_down():
    """Two directions on a 2x3 grid, in a plain loop in float64."""
    names, grid = ('snake_vertical', 'column_reverse'), (2, 3)
    mixer = mixer_of(names).double()
    x = torch.randn(2, 6, 8, dtype=torch.double)
    xin, z = mixer.in_proj(x).split(mixer.d_inner, -1)
    maps = xin.transpose(1, 2).reshape(2, -1, *grid)
    u = F.silu(mixer.conv2d(maps)).flatten(2).transpose(1, 2)
    dt, B, C = mixer.x_proj(u).split([mixer.dt_rank, 4, 4], -1)
    bias = mixer.dt_proj.bias
    delta = F.softplus(dt @ mixer.dt_proj.weight.T + 2 * bias)
    A = -mixer.A_log.exp()
    total = torch.zeros_like(u)
    for name in names:
        order = scan_order(name, *grid)
        rows = move_rows(order, grid)
        h = u.new_zeros(2, mixer.d_inner, 4)
        for t, pixel in enumerate(order.tolist()):
            value = u[:, pixel]
            step = delta[:, t].unsqueeze(-1)
            into = (B[:, t] + mixer.direction_Bs[rows[t]]).unsqueeze(1)
            h = (step * A).exp() * h + step * into * value.unsqueeze(-1)
            y = (h * C[:, t].unsqueeze(1)).sum(-1) + mixer.D * value
            total[:, pixel] += y
    expected = mixer.out_proj(F.silu(z) * total)
    actual = mixer(x, grid)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_gradients_in_float64():
    mixer = mixer_of(
        ('snake_horizontal', 'column_reverse'),
        dims=4,
        d_state=2,
        expand=1,
        layer_scale=0.5,
    ).double()
    names = [name for name, _ in mixer.named_parameters()]
    assert len(names) == 13
    x = torch.randn(1, 6, 4, dtype=torch.double, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(
            mixer, dict(zip(names, values)), (x, (2, 3))
        )

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()))


# ------------------------------------------------------------- settings


def test_sizes_follow_the_settings():
    mixer = mixer_of(dims=20, d_state=3, expand=1.5, conv_size=5, bias=False)
    assert mixer.d_inner == 30
    assert mixer.dt_rank == 2
    assert mixer.in_proj.weight.shape == (60, 20)
    assert mixer.x_proj.weight.shape == (2 + 2 * 3, 30)
    assert mixer.conv2d.weight.shape == (30, 1, 5, 5)
    assert mixer.A_log.shape == (30, 3)
    assert mixer.in_proj.bias is None
    assert mixer.out_proj.bias is None
    assert mixer.gamma is None
    assert mixer(torch.randn(1, 6, 20), (2, 3)).shape == (1, 6, 20)
    assert mixer_of(dt_rank=5).dt_proj.in_features == 5
    assert mixer_of(conv_bias=False).conv2d.bias is None


def test_start_values_of_the_state_space():
    torch.manual_seed(0)
    mixer = PlainMambaMixer(
        64, SNAKES, dt_min=0.01, dt_max=0.5, layer_scale=0.25
    )
    steps = F.softplus(mixer.dt_proj.bias)
    slack = 1e-5
    assert steps.min() >= 0.01 - slack
    assert steps.max() <= 0.5 + slack
    # Log-uniform: the median is the geometric mean of the ends.
    middle = math.sqrt(0.01 * 0.5)
    assert middle / 2 < steps.median() < middle * 2
    assert mixer.dt_proj.weight.abs().max() <= mixer.dt_rank**-0.5
    expected = torch.arange(1.0, 17).expand(128, 16)
    torch.testing.assert_close(mixer.A_log.exp().detach(), expected)
    assert mixer.D.eq(1).all()
    assert mixer.gamma.eq(0.25).all()
    assert mixer.direction_Bs.std() > 0
