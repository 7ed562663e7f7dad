# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Features of VideoMamba: of masked videos, pooled, and for CLIP."""

import math

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import CLOSE
from mmpretrain.registry import MODELS
from torch import nn
from video_mamba_cases import (
    DIMS,
    GRID,
    TOKENS,
    backbone,
    image_backbone,
    some_mask,
    videos,
)

from transmamba_mm.distill.recorders import DirectionTapsRecorder
from transmamba_mm.models import ClipDecoders, VideoMamba
from transmamba_mm.models.necks.clip_decoders import sinusoids

# ---------------------------------------------------------------- masks


@pytest.mark.parametrize('out_type', ['raw', 'avg_featmap', 'cls_token'])
def test_a_mask_that_drops_nothing_changes_nothing(out_type):
    net = backbone(out_type=out_type)
    x = videos()
    mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    assert net(x, mask=mask)[0].equal(net(x)[0])


def test_kept_tokens_keep_their_order():
    net = backbone(out_type='raw')
    x, mask = videos(), some_mask()
    read = []
    net.layers[0].register_forward_pre_hook(
        lambda m, args: read.append(args[0])
    )
    net(x)
    (out,) = net(x, mask=mask)
    every, kept = read
    for row in range(2):
        places = (~mask[row]).nonzero().flatten()
        assert kept[row].equal(every[row, places])
    assert out.shape == (2, 21, DIMS)


def test_what_is_dropped_is_not_seen():
    net = backbone()
    x = videos()
    mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    mask[:, 1:17] = True  # the first frame
    moved = x.clone()
    moved[:, :, 0] += 1
    assert net(moved, mask=mask)[0].equal(net(x, mask=mask)[0])
    assert not net(moved)[0].equal(net(x)[0])


def test_masks_in_image_models_and_with_checkpointing():
    x, mask = torch.randn(2, 3, 16, 16), some_mask(5, 17)
    grads = []
    for with_cp in (False, True):
        net = image_backbone(with_cp=with_cp).train()
        net(x, mask=mask)[0].pow(3).sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, **CLOSE)


def _cls_dropped():
    mask = some_mask()
    mask[:, 0] = True
    return mask


def _uneven():
    mask = some_mask()
    mask[1, 1:] = False
    return mask


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (_cls_dropped(), r'drops the class token.*mask\[:, 0\] = False'),
        (_uneven(), r'as many tokens in each row, got \[44, 0\]'),
        (some_mask().float(), r'must be bool \(2, 65\)'),
        (some_mask()[:, 1:], r'class token first, got torch.bool \(2, 64\)'),
        (some_mask(0), 'drops every patch'),
    ],
)
def test_masks_that_do_not_fit_are_named(mask, message):
    with pytest.raises(ValueError, match=message):
        backbone()(videos(), mask=mask)


def test_masks_exclude_maps_and_taps():
    net = backbone(out_type='featmap')
    with pytest.raises(ValueError, match="out_type than 'featmap'"):
        net(videos(), mask=some_mask())
    net = backbone()
    recorder = DirectionTapsRecorder()
    recorder.initialize(net)
    with recorder, pytest.raises(RuntimeError, match='record without mask'):
        net(videos(), mask=some_mask())
    net(videos(), mask=some_mask())


# -------------------------------------------------------------- pooling


@pytest.mark.parametrize('keep_temporal', [False, True])
@pytest.mark.parametrize('pool_type', VideoMamba.POOL_TYPES)
@pytest.mark.parametrize('pool_norm', [False, True])
def test_pooling(pool_type, keep_temporal, pool_norm):
    net = backbone(
        out_type='pooled',
        pool_type=pool_type,
        keep_temporal=keep_temporal,
        pool_norm=pool_norm,
    )
    raw = backbone(out_type='raw')
    raw.load_state_dict(net.state_dict(), strict=False)
    x = videos(3, 16, 20)
    (tokens,) = raw(x)
    cls, patches = tokens[:, :1], tokens[:, 1:]
    mean = patches.mean(1, keepdim=True)
    if keep_temporal:
        mean = torch.stack([p.mean(1) for p in patches.split(20, 1)], 1)
    expected = {
        'cls': cls,
        'avg': mean,
        'cls+avg': cls + mean,
        'cls_cat_avg': cls + mean
        if keep_temporal
        else torch.cat([cls, mean], 1),
    }[pool_type]
    assert isinstance(net.pool_norm, nn.LayerNorm) == pool_norm
    if pool_norm:
        expected = F.layer_norm(
            expected, (DIMS,), net.pool_norm.weight, net.pool_norm.bias, 1e-5
        )
    torch.testing.assert_close(net(x)[0], expected, **CLOSE)


@pytest.mark.parametrize('tubelet', [1, 2])
def test_means_of_frames_average_to_the_mean(tubelet):
    kwargs = dict(
        out_type='pooled',
        pool_norm=False,
        num_frames=8,
        tubelet_size=tubelet,
    )
    x = videos(8)
    frames = backbone(keep_temporal=True, **kwargs)(x)[0]
    whole = backbone(**kwargs)(x)[0]
    assert frames.shape == (2, 8, DIMS)
    torch.testing.assert_close(frames.mean(1, True), whole, **CLOSE)


def test_frames_of_masked_videos():
    net = backbone(out_type='pooled', keep_temporal=True, pool_norm=False)
    x = videos()
    mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    mask[:, 1:].unflatten(1, GRID)[:, :, :2] = True  # a tube, all frames
    tokens = net.encode(x, mask).tokens
    frames = tokens[:, 1:].unflatten(1, (4, 8)).mean(2)
    expected = tokens[:, :1] + frames
    torch.testing.assert_close(net(x, mask=mask)[0], expected, **CLOSE)
    with pytest.raises(ValueError, match='split 21 patches evenly over 4'):
        net(x, mask=some_mask(21))


def test_pooled_images():
    net = image_backbone(out_type='pooled')
    assert net(torch.randn(2, 3, 16, 16))[0].shape == (2, 1, DIMS)


# -------------------------------------------------- alignment with CLIP


def test_features_of_layers():
    net = backbone(depth=3, out_type='raw')
    x, mask = videos(), some_mask()
    streams = []
    for layer in net.layers:
        layer.register_forward_hook(lambda m, i, o: streams.append(o))
    found = net.encode(x, mask, layers=(0, 2))
    assert found.grid == GRID
    assert found.tokens.equal(net(x, mask=mask)[0])
    first, last = found.layers
    assert first.equal(net.norm_f(streams[0]))
    assert last.equal(streams[1])
    other = net.encode(x, mask, layers=(2,), last='output').layers
    assert other[0].equal(streams[2])
    assert net.encode(x).layers == []
    with pytest.raises(ValueError, match=r'layers must be in 0\.\.2'):
        net.encode(x, layers=(3,))
    with pytest.raises(ValueError, match="'input' or 'output', got 'mean'"):
        net.encode(x, last='mean')


def test_decoders():
    net = backbone(depth=5)
    neck = MODELS.build(
        dict(
            type='transmamba.ClipDecoders',
            embed_dims=DIMS,
            clip_dims=6,
            num_decoders=2,
            interval=2.5,
        )
    )
    layers = neck.student_layers(5)
    assert layers == [2, 4]
    x, mask = videos(), some_mask()
    found = net.encode(x, mask, layers=layers)
    out = neck(found.layers, found.grid, mask)
    assert out.shape == (2, 2, 21, 6)
    decoder = neck.clip_decoder[1]
    table = sinusoids(65, DIMS, 'cpu')[0].expand(2, -1, -1)
    rows = torch.stack([t[~m] for t, m in zip(table, mask)])
    expected = decoder.norm(decoder.head(found.layers[1] + rows))
    torch.testing.assert_close(out[1], expected, **CLOSE)
    found = net.encode(x, layers=layers)
    assert neck(found.layers, found.grid).shape == (2, 2, 65, 6)
    unit = ClipDecoders(DIMS, 6, 2, normalise=True)(found.layers, GRID)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2, 2, 65))
    with pytest.raises(ValueError, match='cannot decode features of 1'):
        neck(found.layers[:1], found.grid)
    with pytest.raises(ValueError, match='do not fit a backbone of 2 layers'):
        neck.student_layers(2)


def test_sinusoids():
    (table,) = sinusoids(5, 6, 'cpu')
    for row in range(5):
        for j in range(6):
            angle = row / 10000 ** (2 * (j // 2) / 6)
            value = math.cos(angle) if j % 2 else math.sin(angle)
            assert table[row, j].item() == pytest.approx(value, abs=1e-6)
