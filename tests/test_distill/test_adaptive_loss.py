# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""AdaptiveBidirectionalDistill against formulas written down here."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from transmamba_mm.contract import TapRecord
from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.distill import AdaptiveBidirectionalDistill
from transmamba_mm.distill.methods.transmamba import _MIN_SIMILARITY

EXACT_F32 = 1e-6  # float32 against float64 on values around one
GRAD_TOL = 1e-5
GRID = (2, 3)


def orders(direction):
    return lambda *grid: scan_order(direction, *grid)


def make_taps(
    layers=3,
    directions=('raster', 'raster_reverse'),
    batch=2,
    grid=GRID,
    channels=5,
    seed=0,
    **kwargs,
):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, math.prod(grid), channels)
    return [
        TapRecord(
            layer,
            direction,
            torch.randn(shape, generator=generator).requires_grad_(),
            grid,
            orders(direction),
        )
        for layer in range(layers)
        for direction in directions
    ]


def make_teacher(batch=2, grid=GRID, channels=5, num=1, seed=100):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, math.prod(grid), channels)
    return [torch.randn(shape, generator=generator) for _ in range(num)]


def plain_similarities(taps, targets):
    """{direction: (layers,)} in float64, token by token."""
    found = {}
    for tap in taps:
        order = tap.scan_order(*tap.grid).tolist()
        total = 0.0
        for step, patch in enumerate(order):
            a = tap.tokens[:, step].double()
            b = targets[tap.layer][:, patch].double()
            total = total + ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1))
        cosine = total.mean() / len(order)
        found.setdefault(tap.direction, []).append(cosine)
    return {name: torch.stack(values) for name, values in found.items()}


def plain_loss(taps, targets, tau):
    loss = 0.0
    for s in plain_similarities(taps, targets).values():
        e = torch.exp(-s.detach() / tau)
        loss = loss + (e / e.sum() * (1 - s)).sum()
    return loss


def test_equals_the_formula_in_value_and_gradient():
    taps, teacher = make_taps(), make_teacher()
    loss = AdaptiveBidirectionalDistill(tau=0.1)(taps, teacher)
    tokens = [tap.tokens for tap in taps]
    found = torch.autograd.grad(loss, tokens)
    wanted_loss = plain_loss(taps, teacher * 3, 0.1)
    wanted = torch.autograd.grad(wanted_loss, tokens)
    assert loss.item() == pytest.approx(wanted_loss.item(), abs=EXACT_F32)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=GRAD_TOL, atol=GRAD_TOL)
        assert a.abs().max() > 0


def test_loss_weight_scales():
    taps, teacher = make_taps(), make_teacher()
    one = AdaptiveBidirectionalDistill()(taps, teacher)
    half = AdaptiveBidirectionalDistill(loss_weight=0.5)(taps, teacher)
    torch.testing.assert_close(half, one / 2)


@given(
    batch=st.integers(1, 3),
    h=st.integers(1, 4),
    w=st.integers(1, 4),
    channels=st.integers(1, 6),
    layers=st.integers(1, 4),
    directions=st.lists(
        st.sampled_from(
            ['raster', 'raster_reverse', 'column', 'snake_vertical']
        ),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    tau=st.floats(0.05, 10),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_any_shape(batch, h, w, channels, layers, directions, tau, seed):
    taps = make_taps(layers, directions, batch, (h, w), channels, seed)
    teacher = make_teacher(batch, (h, w), channels, seed=seed + 1)
    module = AdaptiveBidirectionalDistill(tau=tau)
    loss = module(taps, teacher)
    wanted = plain_loss(taps, teacher * layers, tau)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert -1e-5 <= loss.item() <= 2 * len(directions) + 1e-5
    assert set(module.weights) == set(directions)
    for name, weight in module.weights.items():
        assert weight.shape == (layers,)
        assert weight.sum().item() == pytest.approx(1, abs=EXACT_F32)
        similarity = module.similarities[name]
        # A lower similarity never gets a lower weight.
        order = similarity.argsort()
        assert (weight[order].diff() <= EXACT_F32).all()


def test_limits_of_the_loss():
    """0 for perfect taps and 2 per direction for opposite ones."""
    teacher = make_teacher()
    for sign, wanted in ((3.0, 0.0), (-0.5, 4.0)):
        taps = [
            tap.with_tokens(sign * teacher[0][:, tap.order()])
            for tap in make_taps()
        ]
        loss = AdaptiveBidirectionalDistill()(taps, teacher)
        assert loss.item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize('weighting', AdaptiveBidirectionalDistill.WEIGHTINGS)
def test_order_is_bookkeeping(weighting):
    """A tap in scan order equals the same tap put back to raster order."""
    directions = ('raster_reverse', 'column', 'snake_vertical_reverse')
    taps, teacher = make_taps(directions=directions), make_teacher()
    raster = []
    for tap in taps:
        visited = tap.order().tolist()
        back = torch.stack(
            [
                tap.tokens[:, visited.index(patch)]
                for patch in range(tap.tokens.shape[1])
            ],
            dim=1,
        )
        put_back = TapRecord(
            tap.layer, tap.direction, back, tap.grid, orders('raster')
        )
        raster.append(put_back)
    module = AdaptiveBidirectionalDistill(weighting=weighting)
    scanned = module(taps, teacher)
    torch.testing.assert_close(scanned, module(raster, teacher))
    unpermuted = [
        TapRecord(t.layer, t.direction, t.tokens, t.grid, orders('raster'))
        for t in taps
    ]
    assert abs(module(unpermuted, teacher) - scanned) > 1e-3


def test_reverse_is_the_flipped_teacher():
    taps = make_taps(directions=('raster_reverse',))
    teacher = make_teacher()
    forward = [
        TapRecord(t.layer, t.direction, t.tokens, t.grid, orders('raster'))
        for t in taps
    ]
    module = AdaptiveBidirectionalDistill()
    torch.testing.assert_close(
        module(taps, teacher), module(forward, [teacher[0].flip(1)])
    )


# ------------------------------------------------------------- the weights


def test_lower_similarity_gets_higher_weight():
    module = AdaptiveBidirectionalDistill()
    module(make_taps(layers=4), make_teacher())
    for name, weight in module.weights.items():
        similarity = module.similarities[name]
        assert weight.argmax() == similarity.argmin()
        assert weight.argmin() == similarity.argmax()
        assert weight.max() > weight.min()


@pytest.mark.parametrize('weighting', AdaptiveBidirectionalDistill.WEIGHTINGS)
def test_weights_are_constants_for_the_gradient(weighting):
    taps, teacher = make_taps(), make_teacher()
    module = AdaptiveBidirectionalDistill(weighting=weighting)
    tokens = [tap.tokens for tap in taps]
    found = torch.autograd.grad(module(taps, teacher), tokens)
    assert not any(w.requires_grad for w in module.weights.values())
    assert not any(s.requires_grad for s in module.similarities.values())
    similarities = plain_similarities(taps, teacher * 3)
    fixed = sum(
        (module.weights[name].double() * (1 - s)).sum()
        for name, s in similarities.items()
    )
    for a, b in zip(found, torch.autograd.grad(fixed, tokens)):
        torch.testing.assert_close(a, b, rtol=GRAD_TOL, atol=GRAD_TOL)


def test_large_tau_and_uniform_agree():
    taps, teacher = make_taps(), make_teacher()
    hot = AdaptiveBidirectionalDistill(tau=1e5)
    flat = AdaptiveBidirectionalDistill(weighting='uniform')
    torch.testing.assert_close(hot(taps, teacher), flat(taps, teacher))
    for weight in hot.weights.values():
        torch.testing.assert_close(weight, torch.full((3,), 1 / 3))
    sharp = AdaptiveBidirectionalDistill(tau=1e-3)
    sharp(taps, teacher)
    assert min(w.max() for w in sharp.weights.values()) > 0.99


def test_paper_ratio_formula():
    module = AdaptiveBidirectionalDistill(weighting='paper_ratio', tau=0.5)
    s = torch.tensor([0.3, 0.6, 0.2])
    ratio = [1.1 / (0.5 * x) for x in s.tolist()]
    wanted = torch.tensor(ratio).softmax(0)
    torch.testing.assert_close(module._weigh(s), wanted)


@given(
    st.lists(
        st.floats(-1, 1, width=32, allow_subnormal=False),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([0.01, 0.1, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_paper_ratio_is_finite_and_monotone(values, tau):
    module = AdaptiveBidirectionalDistill(weighting='paper_ratio', tau=tau)
    weight = module._weigh(torch.tensor([*values, 0.0]))
    assert torch.isfinite(weight).all()
    assert weight.sum().item() == pytest.approx(1, abs=1e-5)
    clamped = [max(v, _MIN_SIMILARITY) for v in [*values, 0.0]]
    order = sorted(range(len(clamped)), key=clamped.__getitem__)
    assert (weight[torch.tensor(order)].diff() <= EXACT_F32).all()


def test_statistics():
    module = AdaptiveBidirectionalDistill()
    module(make_taps(), make_teacher())
    statistics = module.statistics()
    everything = torch.cat(list(module.similarities.values()))
    assert statistics['sim_min'] == everything.min()
    assert statistics['sim_max'] == everything.max()
    assert 1 / 3 < statistics['w_max'] < 1
    # mmengine sums whatever has "loss" in its name.
    assert not any('loss' in name for name in statistics)


# ------------------------------------------------------------- the teacher


def test_no_gradient_into_the_teacher():
    teacher = [t.requires_grad_() for t in make_teacher()]
    taps = make_taps()
    AdaptiveBidirectionalDistill()(taps, teacher).backward()
    assert teacher[0].grad is None
    assert all(tap.tokens.grad is not None for tap in taps)


def test_a_single_tensor_is_one_teacher_layer():
    taps, teacher = make_taps(), make_teacher()
    module = AdaptiveBidirectionalDistill()
    assert torch.equal(module(taps, teacher), module(taps, teacher[0]))


@pytest.mark.parametrize(
    ('teacher_layers', 'num_layers', 'num_teacher', 'wanted'),
    [
        ('last', 3, 6, [5, 5, 5]),
        ('uniform', 3, 6, [1, 3, 5]),
        ('uniform', 6, 3, [0, 0, 1, 1, 2, 2]),
        ('uniform', 4, 4, [0, 1, 2, 3]),
        ('uniform', 2, 3, [1, 2]),
        ([0, -1, 2], 3, 6, [0, 5, 2]),
    ],
)
def test_teacher_layers(teacher_layers, num_layers, num_teacher, wanted):
    taps = make_taps(layers=num_layers)
    teacher = make_teacher(num=num_teacher)
    module = AdaptiveBidirectionalDistill(teacher_layers=teacher_layers)
    loss = module(taps, teacher)
    targets = [teacher[i] for i in wanted]
    wanted_loss = plain_loss(taps, targets, 0.1)
    assert loss.item() == pytest.approx(wanted_loss.item(), abs=1e-5)


@given(st.integers(1, 30), st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_uniform_layers_rise_to_the_last(num_layers, num_teacher):
    module = AdaptiveBidirectionalDistill(teacher_layers='uniform')
    targets = module._targets(num_layers, num_teacher)
    assert targets == sorted(targets)
    assert targets[-1] == num_teacher - 1
    assert targets[0] >= 0
    for i, target in enumerate(targets):
        depth, wanted = (target + 1) / num_teacher, (i + 1) / num_layers
        # Half a teacher layer, unless there is none that shallow.
        assert abs(depth - wanted) <= 0.5 / num_teacher + 1e-9 or target == 0


@pytest.mark.parametrize(
    ('teacher_layers', 'num_teacher', 'message'),
    [
        ('uniform', 1, 'needs all teacher layers'),
        ([0, 1], 6, 'one index below 6'),
        ([0, 1, 6], 6, 'one index below 6'),
        ([0, 1, -7], 6, 'one index below 6'),
    ],
)
def test_teacher_layers_that_do_not_fit(teacher_layers, num_teacher, message):
    module = AdaptiveBidirectionalDistill(teacher_layers=teacher_layers)
    with pytest.raises(ValueError, match=message):
        module(make_taps(layers=3), make_teacher(num=num_teacher))


# ------------------------------------------------------------------ dtypes


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    taps = [tap.with_tokens(tap.tokens.to(dtype)) for tap in make_taps()]
    teacher = [t.to(dtype) for t in make_teacher()]
    module = AdaptiveBidirectionalDistill()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = module(taps, teacher)
    assert loss.dtype == torch.float32
    wide = [tap.with_tokens(tap.tokens.float()) for tap in taps]
    wanted = plain_loss(wide, [teacher[0].float()] * 3, 0.1)
    assert loss.item() == pytest.approx(wanted.item(), abs=EXACT_F32)


def test_zero_tokens_are_finite():
    taps = [
        tap.with_tokens(torch.zeros_like(tap.tokens).requires_grad_())
        for tap in make_taps()
    ]
    loss = AdaptiveBidirectionalDistill()(taps, make_teacher())
    loss.backward()
    assert loss.item() == pytest.approx(2)
    assert all(torch.isfinite(tap.tokens.grad).all() for tap in taps)


def test_numerical_gradient():
    """A directional derivative, with the weights held by tau."""
    module = AdaptiveBidirectionalDistill(weighting='uniform')
    taps, teacher = make_taps(), make_teacher()
    loss = module(taps, teacher)
    tokens = taps[0].tokens
    (gradient,) = torch.autograd.grad(loss, tokens)
    step = 1e-2
    direction = F.normalize(torch.randn_like(tokens).flatten(), dim=0)
    direction = direction.view_as(tokens)

    def at(offset):
        moved = taps[0].with_tokens(tokens.detach() + offset * direction)
        return module([moved, *taps[1:]], teacher).item()

    numerical = (at(step) - at(-step)) / (2 * step)
    analytical = (gradient * direction).sum().item()
    assert numerical == pytest.approx(analytical, rel=2e-2, abs=1e-5)


# ------------------------------------------------------------------ errors


def test_misaligned_tokens_are_explained():
    module = AdaptiveBidirectionalDistill()
    with_class_token = make_teacher(grid=(1, 7))
    with pytest.raises(ValueError, match=r'6 tokens .grid 2x3.*has 7 patch'):
        module(make_taps(), with_class_token)


def test_misaligned_channels_are_explained():
    with pytest.raises(ValueError, match='5 channels, the teacher 8'):
        AdaptiveBidirectionalDistill()(make_taps(), make_teacher(channels=8))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(tau=0), 'tau must be positive'),
        (dict(weighting='sotfmax'), 'weighting must be one of'),
        (dict(tau=float('nan')), 'tau must be a number, got nan'),
        (dict(tau=True), 'tau must be a number, got True'),
        (dict(loss_weight=-1), 'loss_weight must be at least 0'),
        (dict(loss_weight=float('nan')), 'loss_weight must be a number'),
        (dict(teacher_layers='first'), "'last', 'uniform' or a list"),
        (dict(teacher_layers=None), "'last', 'uniform' or a list"),
        (dict(teacher_layers=[0, 1.5]), "'last', 'uniform' or a list"),
    ],
)
def test_unknown_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBidirectionalDistill(**kwargs)
