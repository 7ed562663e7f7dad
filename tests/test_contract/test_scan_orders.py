# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Scan orders: the built-in ones, and one that a user registers."""

import pytest
import torch
from helpers import SNAKES, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.models import PlainMamba, VMamba
from transmamba_mm.models.layers.plain_mamba_mixer import move_rows
from transmamba_mm.registry import SCAN_ORDERS

# The scans are summed in another order than the taps.
CLOSE = dict(rtol=1e-4, atol=1e-5)

NAMES = (*SNAKES, 'raster', 'raster_reverse', 'column', 'column_reverse')
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))
few = settings(max_examples=20, deadline=None)


def test_all_built_in_orders_are_tested_here():
    assert set(NAMES) <= set(SCAN_ORDERS.module_dict)


@few
@given(grids)
def test_every_registered_order_is_a_permutation(grid):
    for name in SCAN_ORDERS.module_dict:
        order = scan_order(name, *grid)
        assert order.dtype == torch.int64
        assert order.sort().values.tolist() == list(range(grid[0] * grid[1]))


@few
@given(grids)
def test_reverse_is_the_flip(grid):
    for name in NAMES:
        if name.endswith('_reverse'):
            forward = scan_order(name.removesuffix('_reverse'), *grid)
            assert scan_order(name, *grid).equal(forward.flip(0))


@few
@given(grids)
def test_snakes_only_move_to_a_neighbour(grid):
    for name in SNAKES:
        order = scan_order(name, *grid)
        rows, cols = order // grid[1], order % grid[1]
        steps = rows.diff().abs() + cols.diff().abs()
        assert steps.eq(1).all()
        moves = move_rows(order, grid)
        assert moves[0] == 0
        assert moves[1:].ne(0).all()


def test_orders_on_a_small_grid():
    expected = dict(
        raster=[0, 1, 2, 3, 4, 5],
        column=[0, 3, 1, 4, 2, 5],
        snake_horizontal=[0, 1, 2, 5, 4, 3],
        snake_vertical=[0, 3, 4, 1, 2, 5],
    )
    for name, order in expected.items():
        assert scan_order(name, 2, 3).tolist() == order


def test_moves_name_the_step_that_was_made():
    # Right, jump, up, left, down, jump on a grid of 2x3.
    order = torch.tensor([0, 1, 5, 2, 1, 4, 0])
    assert move_rows(order, (2, 3)).tolist() == [0, 1, 0, 3, 2, 4, 0]


def test_unknown_order_lists_the_known_ones():
    with pytest.raises(KeyError, match=r'zigzag.*raster_reverse'):
        scan_order('zigzag', 2, 2)


def test_cached_orders_are_no_inference_tensors():
    with torch.inference_mode():
        order = scan_order('column', 3, 11)
    assert not order.is_inference()


def test_cached_orders_are_no_fake_tensors():
    with FakeTensorMode():
        order = scan_order('column', 3, 13)
    assert order[1] == 13


# --------------------------------------------------- a user's own order


@pytest.fixture
def registered():
    """Registers orders by name for one test."""
    added = []

    def add(name, fn):
        SCAN_ORDERS.register_module(name=name, module=fn)
        added.append(name)
        return name

    yield add
    for name in added:
        SCAN_ORDERS.module_dict.pop(name)


def diagonal(h, w):
    cells = [(i + j, i, i * w + j) for i in range(h) for j in range(w)]
    return torch.tensor([cell[2] for cell in sorted(cells)])


@pytest.mark.parametrize('backbone', [PlainMamba, VMamba])
def test_an_order_may_be_registered_anew(registered, backbone):
    """As by running a notebook's cell again: mixers and targets follow."""
    name = registered('test_anew', diagonal)
    depth = dict(depths=[1]) if backbone is VMamba else dict(num_layers=1)
    options = dict(patch_size=4) if backbone is PlainMamba else {}
    arch, images = dict(embed_dims=8, **depth), torch.randn(1, 3, 16, 16)

    def orders():
        directions = name, 'raster'
        net = backbone(arch, img_size=16, directions=directions, **options)
        net(images)
        (mixer,) = net.mixers()
        own = mixer.sequence_orders(16, (4, 4), 'cpu')[0]
        return own.long(), net.scan_order(name, 4, 4)

    mixed, told = orders()
    assert mixed.equal(told) and told[0] == 0
    SCAN_ORDERS.register_module(
        name=name, module=lambda h, w: diagonal(h, w).flip(0), force=True
    )
    mixed, told = orders()
    assert mixed.equal(told) and told[0] == 15


def test_a_registered_order_works_by_name_alone(registered):
    name = registered('test_diagonal', diagonal)
    net = PlainMamba(
        arch=dict(embed_dims=8, num_layers=1),
        img_size=16,
        patch_size=4,
        directions=(name, 'raster_reverse'),
        mixer_cfg=dict(d_state=4, conv_size=3),
    )
    randomise(net)
    assert net.scan_order(name, 2, 2).tolist() == [0, 1, 2, 3]
    assert net.scan_order(name, 2, 3).tolist() == [0, 1, 3, 2, 4, 5]
    mixer, taps = net.layers[0].mamba, net.taps()[0]
    seen = {}
    for direction, tap in taps.out.items():
        tap.register_forward_hook(
            lambda m, args, out, d=direction: seen.update({d: (out, args[1])})
        )
    mixer.register_forward_hook(lambda m, i, out: seen.update(mixer=out))
    (out,) = net(torch.randn(2, 3, 12, 20))
    out.sum().backward()
    assert out.isfinite().all()
    total = mixer.out_proj.bias
    for direction in net.directions:
        tokens, grid = seen[direction]
        assert grid == (3, 5)
        order = net.scan_order(direction, *grid)
        total = total + torch.empty_like(tokens).index_copy(1, order, tokens)
    torch.testing.assert_close(total, seen['mixer'], **CLOSE)


@pytest.mark.parametrize(
    ('order', 'got'),
    [
        (lambda h, w: list(range(h * w)), 'a list'),
        (lambda h, w: None, 'a NoneType'),
        (lambda h, w: torch.arange(h * w).float(), r'torch\.float32 of shape'),
        (lambda h, w: torch.arange(h * w).int(), r'torch\.int32 of shape'),
        (lambda h, w: torch.arange(h * w + 1), r'of shape \(\d+,\)'),
        (lambda h, w: torch.arange(h * w).view(h, w), r'shape \(\d, \d\)'),
        (lambda h, w: torch.zeros(h * w).long(), 'repeats or misses some'),
        (lambda h, w: torch.arange(h * w) + 1, 'repeats or misses some'),
        (lambda h, w: torch.arange(h * w) - 1, 'repeats or misses some'),
    ],
)
def test_what_is_no_permutation_is_refused(registered, order, got):
    name = registered('test_wrong', order)
    message = f"order 'test_wrong' must return a LongTensor.* got .*{got}"
    with pytest.raises(ValueError, match=message):
        scan_order(f'{name}:2', 2, 3)


@pytest.mark.parametrize('backbone', [PlainMamba, VMamba])
def test_an_order_that_misses_tokens_is_refused(registered, backbone):
    name = registered('test_twice', lambda h, w: torch.zeros(h * w).long())
    arch = dict(embed_dims=8, num_layers=1)
    if backbone is VMamba:
        arch = dict(embed_dims=8, depths=(1,))
    net = backbone(arch, patch_size=4, directions=(name,))
    with pytest.raises(ValueError, match=r"'test_twice' .* 4x4.* once"):
        net(torch.randn(1, 3, 16, 16))


def test_an_order_is_made_and_checked_once_per_grid(registered):
    calls = []

    def order(h, w):
        calls.append((h, w))
        return torch.arange(h * w)

    name = registered('test_counted', order)
    for _ in range(3):
        scan_order(name, 4, 7)
        scan_order(name, 4, 8)
    assert calls == [(4, 7), (4, 8)]


def test_an_order_made_for_a_model_without_values(registered):
    name = registered('test_default_device', diagonal)
    with torch.device('meta'):
        net = VMamba(dict(embed_dims=8, depths=(1,)), directions=(name,))
    assert net.scan_order(name, 1, 1).tolist() == [0]
