# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""FeatureCalibration and the resizing of taps."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    build,
    save_teacher,
    tiny_batch,
    tiny_student,
    tiny_teacher,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transmamba_mm.contract import Pair, TapRecord, TeacherError
from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.distill import FeatureCalibration
from transmamba_mm.registry import MODELS

SAME = dict(rtol=1e-5, atol=1e-6)
DIRECTIONS = ('raster', 'snake_vertical_reverse')


def make_tap(layer=0, direction='raster', channels=3, grid=(2, 3), batch=2):
    return TapRecord(
        layer,
        direction,
        torch.randn(batch, math.prod(grid), channels),
        grid,
        lambda *g: scan_order(direction, *g),
    )


def padded_mlp(mlp, tokens):
    batch, length, channels = tokens.shape
    wide = torch.zeros(batch, length, mlp.fc1.in_features)
    wide[..., :channels] = tokens
    return nn.Sequential(mlp.fc1, nn.GELU(), mlp.fc2)(wide)


def calibration(**kwargs):
    settings = dict(
        in_channels=3, out_channels=8, num_layers=2, directions=DIRECTIONS
    )
    return FeatureCalibration(**{**settings, **kwargs})


def test_equals_zero_padding_and_an_mlp():
    connector = calibration()
    assert len(connector.mlps) == 4
    taps = [make_tap(i, d) for i in range(2) for d in DIRECTIONS]
    for place, (tap, out) in enumerate(zip(taps, connector(taps))):
        wanted = padded_mlp(connector.mlps[place], tap.tokens)
        torch.testing.assert_close(out.tokens, wanted, **SAME)
        assert out.tokens.shape == (2, 6, 8)
        assert (out.layer, out.direction) == (tap.layer, tap.direction)
        assert torch.equal(out.order(), tap.order())


def test_the_order_of_records_does_not_matter():
    connector = calibration()
    taps = [make_tap(i, d) for i in range(2) for d in DIRECTIONS]
    forward = [t.tokens for t in connector(taps)]
    backward = [t.tokens for t in connector(taps[::-1])][::-1]
    assert all(map(torch.equal, forward, backward))


def test_every_parameter_learns():
    connector = calibration()
    taps = [make_tap(i, d) for i in range(2) for d in DIRECTIONS]
    sum(t.tokens.square().sum() for t in connector(taps)).backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_shared():
    connector = calibration(shared=True)
    assert len(connector.mlps) == 1
    taps = [make_tap(i, d) for i in range(2) for d in DIRECTIONS]
    for tap, out in zip(taps, connector(taps)):
        wanted = padded_mlp(connector.mlps[0], tap.tokens)
        torch.testing.assert_close(out.tokens, wanted, **SAME)


def test_shared_over_different_widths():
    connector = calibration(shared=True, in_channels=[3, 5])
    for channels in (3, 5):
        tap = make_tap(channels=channels)
        (out,) = connector([tap])
        wanted = padded_mlp(connector.mlps[0], tap.tokens)
        torch.testing.assert_close(out.tokens, wanted, **SAME)
    with pytest.raises(ValueError, match='no wider than the teacher'):
        calibration(shared=True, in_channels=[3, 9])


def test_one_width_per_layer():
    connector = calibration(in_channels=[3, 5])
    outs = connector([make_tap(0), make_tap(1, channels=5)])
    assert [tuple(o.tokens.shape) for o in outs] == [(2, 6, 8)] * 2
    with pytest.raises(ValueError, match='2 widths for num_layers=3'):
        calibration(in_channels=[3, 5], num_layers=3)


def test_wider_student_is_reduced():
    connector = calibration(in_channels=12)
    tap = make_tap(channels=12)
    (out,) = connector([tap])
    mlp = connector.mlps[0]
    wanted = mlp.fc2(F.gelu(mlp.fc1(mlp.reduce(tap.tokens))))
    torch.testing.assert_close(out.tokens, wanted, **SAME)
    assert mlp.reduce.weight.shape == (8, 12)
    assert mlp.reduce.bias is None
    assert calibration(in_channels=8).mlps[0].reduce is None


def test_wrong_width_is_explained():
    with pytest.raises(ValueError, match='3 channels at layer 1, the tap has'):
        calibration()([make_tap(1, channels=4)])


def test_sizes_from_the_models():
    student = MODELS.build(tiny_student())
    teacher = MODELS.build(tiny_teacher())
    connector = FeatureCalibration()
    with pytest.raises(ValueError, match='does not know its sizes'):
        connector([make_tap()])
    connector.prepare(Pair(student, teacher))
    assert len(connector.mlps) == 2 * 4
    mlp = connector.mlps[0]
    assert (mlp.in_channels, mlp.fc1.in_features) == (12, 16)
    # Explicit sizes win.
    chosen = FeatureCalibration(directions=['snake_vertical'], in_channels=24)
    chosen.prepare(Pair(student, teacher))
    assert len(chosen.mlps) == 2
    assert chosen.mlps[0].in_channels == 24
    kept = connector.mlps
    connector.prepare(Pair(student, teacher))
    assert connector.mlps is kept


def test_a_teacher_of_no_family_needs_a_width():
    pair = Pair(MODELS.build(tiny_student()), nn.Linear(2, 2))
    with pytest.raises(TeacherError, match=r'(?s)Linear.*set out_channels'):
        FeatureCalibration().prepare(pair)
    FeatureCalibration(out_channels=5).prepare(pair)


# -------------------------------------------------------------- resizing


def test_resize_equals_interpolation_on_the_raster_grid():
    for direction in ('raster', 'snake_vertical_reverse', 'column'):
        tap = make_tap(direction=direction, grid=(2, 3))
        order = scan_order(direction, 2, 3)
        maps = torch.empty(2, 6, 3)
        maps[:, order] = tap.tokens
        maps = maps.mT.reshape(2, 3, 2, 3)
        wide = F.interpolate(maps, size=(4, 5), mode='bilinear')
        resized = tap.resized((4, 5))
        target = scan_order(direction, 4, 5)
        wanted = wide.flatten(2).mT[:, target]
        torch.testing.assert_close(resized.tokens, wanted, **SAME)
        assert resized.grid == (4, 5)
        assert torch.equal(resized.order(), target)
        assert resized.layer == tap.layer


@given(
    old=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    new=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    direction=st.sampled_from(['raster_reverse', 'snake_horizontal']),
)
@settings(max_examples=15, deadline=None)
def test_resize_preserves_constants(old, new, direction):
    tap = make_tap(direction=direction, grid=old)
    constant = torch.randn(2, 1, 3)
    tap = tap.with_tokens(constant.expand(2, math.prod(old), 3))
    resized = tap.resized(new).tokens
    wanted = constant.expand(2, math.prod(new), 3)
    torch.testing.assert_close(resized, wanted, **SAME)


def test_resize_to_the_same_grid_is_free():
    tap = make_tap()
    assert tap.resized((2, 3)) is tap
    assert tap.resized([2, 3]) is tap


def test_resize_in_three_dimensions():
    tap = TapRecord(
        0,
        'video',
        torch.randn(2, 12, 3),
        (2, 2, 3),
        lambda *grid: torch.arange(math.prod(grid)).flip(0),
    )
    resized = tap.resized((1, 4, 3))
    maps = tap.tokens.flip(1).mT.reshape(2, 3, 2, 2, 3)
    wanted = F.interpolate(maps, size=(1, 4, 3), mode='trilinear')
    wanted = wanted.flatten(2).mT.flip(1)
    torch.testing.assert_close(resized.tokens, wanted, **SAME)


def test_grid_of_the_connector():
    connector = calibration(grid=[4, 4])
    tap = make_tap(direction='snake_vertical_reverse')
    (out,) = connector([tap])
    wanted = padded_mlp(connector.mlps[1], tap.resized((4, 4)).tokens)
    torch.testing.assert_close(out.tokens, wanted, **SAME)
    assert out.grid == (4, 4)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('tap', ['out', 'inner', 'residual'])
def test_each_tap_has_its_width(tap, shared, tmp_path):
    model = build(
        dict(
            type='transmamba.TransMambaDistill',
            architecture=tiny_student(),  # of expand=2
            teacher=tiny_teacher(),
            teacher_ckpt=save_teacher(tmp_path / 'teacher.pth'),
            distiller=dict(
                type='transmamba.MethodDistiller',
                methods=[
                    dict(
                        type='transmamba.AdaptiveBidirectional',
                        tap=tap,
                        shared=shared,
                    )
                ],
            ),
        )
    )
    calibration = model.distiller.connectors['calibration']
    width = 24 if tap == 'inner' else 12
    assert {mlp.in_channels for mlp in calibration.mlps} == {width}
    losses = model.loss(*tiny_batch())
    assert all(x.isfinite() for k, x in losses.items() if 'loss' in k)
