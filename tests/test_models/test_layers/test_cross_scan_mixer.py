# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VMamba's mixer: its taps, its scans and its derivatives."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise

from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.models import VMamba
from transmamba_mm.models.layers import CrossScanMixer
from transmamba_mm.ops import invert_order, reorder

CROSS = VMamba.DIRECTIONS['cross']
# float64 sums in another order.
EXACT = dict(rtol=1e-9, atol=1e-11)
# A step counts as changed beyond rounding.
CHANGED = 1e-9
# bfloat16 has eight bits of mantissa, float16 eleven.
HALF_RELATIVE = {torch.bfloat16: 0.1, torch.float16: 0.02}

VARIANTS = {
    'plain': {},
    'gated': dict(gated=True),
    'all': dict(gated=True, conv_bias=True, expand=2),
    'one_way': dict(directions=VMamba.DIRECTIONS['v051d']),
    'two_ways': dict(directions=VMamba.DIRECTIONS['v052d']),
    'snake': dict(directions=('snake_vertical',)),
}
every_variant = pytest.mark.parametrize(
    'kwargs', VARIANTS.values(), ids=list(VARIANTS)
)


def mixer_of(dims=6, seed=0, **kwargs):
    kwargs.setdefault('d_state', 2)
    torch.manual_seed(seed)
    mixer = CrossScanMixer(dims, **kwargs)
    randomise(mixer, seed)
    return mixer.double()


def tokens_of(grid, dims=6, batch=2):
    length = grid[0] * grid[1]
    return torch.randn(batch, length, dims, dtype=torch.double)


def record(taps):
    """Hooks all taps; returns what they show and the hooks' handles."""
    seen, handles = {}, []
    for kind in ('inner', 'out'):
        for name, tap in getattr(taps, kind).items():
            handles.append(
                tap.register_forward_hook(
                    lambda m, args, out, key=(kind, name): seen.update(
                        {key: out}
                    )
                )
            )
    return seen, handles


# ----------------------------------------------------------------- taps


@every_variant
@pytest.mark.parametrize('grid', [(3, 5), (1, 1), (4, 2), (1, 7)])
def test_taps_sum_to_the_output(kwargs, grid):
    """Though a norm follows the sum of the directions, not each."""
    mixer, x = mixer_of(**kwargs), tokens_of(grid)
    plain = mixer(x, grid)
    seen, _ = record(mixer.taps)
    torch.testing.assert_close(mixer(x, grid), plain, **EXACT)
    totals = dict(inner=0, out=0)
    for (kind, name), shown in seen.items():
        order = invert_order(scan_order(name, *grid))
        totals[kind] = totals[kind] + reorder(shown, order)
    assert len(seen) == 2 * len(mixer.directions)
    torch.testing.assert_close(totals['out'], plain, **EXACT)
    inner = totals['inner'] @ mixer.out_proj.weight.T
    torch.testing.assert_close(inner, plain, **EXACT)


@every_variant
def test_tapped_and_untapped_have_the_same_gradients(kwargs):
    mixer, x = mixer_of(**kwargs), tokens_of((3, 4)).requires_grad_()
    weight = torch.randn_like(x)

    def gradients():
        out = (mixer(x, (3, 4)) * weight).sum()
        return torch.autograd.grad(out, (x, *mixer.parameters()))

    plain = gradients()
    record(mixer.taps)
    for a, b in zip(gradients(), plain):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize('tapped', [False, True])
@pytest.mark.parametrize('name', ['plain', 'all'])
def test_gradients_in_float64(name, tapped):
    """Of the output, and of one direction's share in it."""
    mixer = mixer_of(
        dims=4,
        directions=('raster', 'column_reverse'),
        **VARIANTS[name],
    )
    names = [name for name, _ in mixer.named_parameters()]
    x = torch.randn(1, 6, 4, dtype=torch.double, requires_grad=True)
    seen, _ = record(mixer.taps) if tapped else ({}, None)

    def run(x, *values):
        out = torch.func.functional_call(
            mixer, dict(zip(names, values)), (x, (2, 3))
        )
        return (out, seen['inner', 'raster']) if tapped else out

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()))


def test_a_tap_on_one_direction_suffices():
    mixer, x = mixer_of(gated=True), tokens_of((3, 4))
    seen, handles = record(mixer.taps)
    mixer(x, (3, 4))
    want = seen['out', 'column']
    for handle in handles:
        handle.remove()
    again = []
    mixer.taps.out['column'].register_forward_hook(
        lambda m, args, out: again.append(out)
    )
    mixer(x, (3, 4))
    torch.testing.assert_close(again[0], want, **EXACT)


def test_nothing_is_shared_out_unless_somebody_listens(monkeypatch):
    def fail(self, parts):
        raise AssertionError('computed for nobody')

    monkeypatch.setattr(CrossScanMixer, '_share_norm', fail)
    mixer_of(gated=True)(tokens_of((2, 3)), (2, 3))


# ---------------------------------------------------------------- scans


@every_variant
def test_mixer_equals_the_equations_written_down(kwargs):
    """In a plain loop over the pixels, on a 2x3 grid."""
    mixer, x, grid = mixer_of(**kwargs), tokens_of((2, 3)), (2, 3)
    parts = mixer.in_proj(x).split(mixer.d_inner, -1)
    maps = parts[0].transpose(1, 2).reshape(2, -1, *grid)
    u = F.silu(mixer.conv2d(maps).flatten(2).transpose(1, 2))
    rank, E, N = mixer.dt_rank, mixer.d_inner, mixer.d_state
    total = torch.zeros_like(u)
    for k, name in enumerate(mixer.directions):
        rows = u @ mixer.x_proj_weight[k].T
        dt, B, C = rows.split([rank, N, N], -1)
        delta = F.softplus(
            dt @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k]
        )
        A = -mixer.A_logs[k * E : (k + 1) * E].exp()
        D = mixer.Ds[k * E : (k + 1) * E]
        h = u.new_zeros(2, E, N)
        for p in scan_order(name, *grid).tolist():
            step = delta[:, p].unsqueeze(-1)
            into = B[:, p].unsqueeze(1) * u[:, p].unsqueeze(-1)
            h = (step * A).exp() * h + step * into
            y = (h * C[:, p].unsqueeze(1)).sum(-1) + D * u[:, p]
            total[:, p] += y
    norm = mixer.out_norm
    total = F.layer_norm(total, (E,), norm.weight, norm.bias, 1e-5)
    if kwargs.get('gated'):
        total = total * F.silu(parts[1])
    expected = mixer.out_proj(total)
    torch.testing.assert_close(mixer(x, grid), expected, **EXACT)


@pytest.mark.parametrize('grid', [(3, 4), (1, 5), (5, 1)])
def test_scans_follow_the_published_order(grid):
    """A pixel reaches, in each direction, those scanned after it."""
    directions = (*CROSS, 'snake_horizontal', 'raster:2')
    mixer = mixer_of(directions=directions)
    length = grid[0] * grid[1]
    u = tokens_of(grid, mixer.d_inner, batch=1)
    bumped = u + torch.eye(length).double().unsqueeze(-1)
    base = mixer._scan(u, grid, merge=False)
    # Sample p is the same but for pixel p.
    shown = (mixer._scan(bumped, grid, merge=False) - base).abs().amax(-1)
    for k, name in enumerate(directions):
        order = scan_order(name, *grid)
        first = (shown[:, k, order] > CHANGED).int().argmax(1)
        assert first.equal(order.argsort())
    # Same order, other parameters.
    assert not base[:, 0].allclose(base[:, -1])


@pytest.mark.parametrize('tapped', [False, True])
@pytest.mark.parametrize('name', ['plain', 'all'])
@pytest.mark.parametrize('dtype', list(HALF_RELATIVE))
def test_half_precision(name, dtype, tapped):
    mixer = mixer_of(**VARIANTS[name]).float()
    x = tokens_of((4, 5)).float()
    expected = mixer(x, (4, 5))
    if tapped:
        record(mixer.taps)
    with torch.autocast('cpu', dtype):
        mixed = mixer(x, (4, 5))
    low = mixer.to(dtype)(x.to(dtype), (4, 5))
    assert low.dtype == dtype
    for out in (mixed, low):
        error = (out.float() - expected).norm() / expected.norm()
        assert error < HALF_RELATIVE[dtype]


def test_buffers_made_without_gradients_serve_in_training():
    mixer, x = mixer_of(), tokens_of((5, 9))
    with torch.inference_mode():
        mixer(x, (5, 9))
    mixer(x.requires_grad_(), (5, 9)).sum().backward()
    assert x.grad.isfinite().all()


# ------------------------------------------------------------- settings


def test_sizes_follow_the_settings():
    mixer = mixer_of(dims=20, d_state=3, expand=1.5, gated=True)
    assert mixer.directions == CROSS
    assert (mixer.d_inner, mixer.dt_rank) == (30, 2)
    shapes = {k: tuple(v.shape) for k, v in mixer.state_dict().items()}
    assert shapes == {
        'in_proj.weight': (60, 20),
        'conv2d.weight': (30, 1, 3, 3),
        'x_proj_weight': (4, 2 + 2 * 3, 30),
        'dt_projs_weight': (4, 30, 2),
        'dt_projs_bias': (4, 30),
        'A_logs': (120, 3),
        'Ds': (120,),
        'out_norm.weight': (30,),
        'out_norm.bias': (30,),
        'out_proj.weight': (20, 30),
    }
    one = mixer_of(directions=('column',), conv_bias=True)
    assert one.x_proj_weight.shape == (1, 1 + 2 * 2, 6)
    assert one.conv2d.bias.shape == (6,)


def test_start_values_of_the_state_space():
    torch.manual_seed(0)
    mixer = CrossScanMixer(64, d_state=8)
    assert mixer.Ds.eq(1).all()
    bound = 64**-0.5
    assert 0.95 * bound < mixer.x_proj_weight.abs().max() <= bound
    steps = F.softplus(mixer.dt_projs_bias)
    assert 1e-3 - 1e-5 <= steps.min() < 2e-3
    assert 0.05 < steps.max() <= 0.1 + 1e-5
    assert 0.95 * 0.5 < mixer.dt_projs_weight.abs().max() <= 0.5
    rates = torch.arange(1.0, 9).expand(256, 8)
    torch.testing.assert_close(mixer.A_logs.exp().detach(), rates)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(d_state=0), 'd_state must be at least 1, got 0'),
        (dict(directions=()), 'at least one scan order'),
        (dict(directions=('raster', 'raster')), "e.g. 'raster:2'"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        mixer_of(**kwargs)
    with pytest.raises(KeyError, match="unknown scan order 'spiral'"):
        mixer_of(directions=('spiral',))
