# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VideoMamba as a backbone: sizes, start values, videos, contract."""

import json

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import (
    CLOSE,
    GOLDEN,
    assert_layer_depths,
    assert_start_values,
    count,
)
from mmpretrain.registry import MODELS
from torch import nn
from video_mamba_cases import (
    DIMS,
    DIRECTIONS,
    GRID,
    STEPS,
    TOKENS,
    backbone,
    classifier,
    image_backbone,
    videos,
)

from transmamba_mm.distill.recorders import DirectionTapsRecorder
from transmamba_mm.models import VideoMamba, VisionMamba
from transmamba_mm.ops import invert_order, reorder

# ------------------------------------------------ size and start values


@pytest.mark.parametrize(
    ('arch', 'dims', 'expected'),
    [
        ('tiny', 192, 7_148_008),
        ('small', 384, 25_796_584),
        ('middle', 576, 74_217_448),
        ('base', 768, 97_598_440),
    ],
)
def test_image_models_have_the_published_size(arch, dims, expected):
    with torch.device('meta'):
        model = MODELS.build(classifier(arch, 1000, dims))
    assert count(model) == expected
    assert count(model.backbone) == expected - 1000 * (dims + 1)
    assert model.backbone.num_layers == (32 if arch == 'middle' else 24)


@pytest.mark.parametrize(
    ('arch', 'dims', 'frames', 'expected'),
    [
        ('tiny', 192, 8, 7_033_744),
        ('tiny', 192, 16, 7_035_280),
        ('tiny', 192, 32, 7_038_352),
        ('tiny', 192, 64, 7_044_496),
        ('small', 384, 8, 25_568_656),
        ('small', 384, 16, 25_571_728),
        ('middle', 576, 8, 73_875_856),
        ('middle', 576, 16, 73_880_464),
    ],
)
def test_video_models_have_the_published_size(arch, dims, frames, expected):
    with torch.device('meta'):
        config = classifier(arch, 400, dims, num_frames=frames)
        assert count(MODELS.build(config)) == expected


@pytest.mark.parametrize('kind', ['image', 'video'])
def test_start_values_are_the_official_ones(kind):
    stats = json.loads((GOLDEN / 'init_stats_videomamba.json').read_text())
    expected = stats[f'{kind}/videomamba_tiny']
    frames = None if kind == 'image' else 8
    net = VideoMamba('tiny', num_frames=frames)
    net.init_weights()
    parameters = dict(net.named_parameters())
    compared = {k: v for k, v in expected.items() if 'head.' not in k}
    assert len(compared) == 22 + (kind == 'video')
    assert_start_values(parameters, compared)


def test_start_values_of_biases_are_zero():
    net = VideoMamba(
        dict(embed_dims=16, num_layers=1), mixer_cfg=dict(bias=True)
    )
    mixer = net.layers[0].mixer
    for layer in (mixer.in_proj, mixer.dt_proj, mixer.dt_proj_b):
        assert layer.bias.eq(0).all()


# ---------------------------------------------------- images and videos


def test_images_are_a_vim_with_the_class_token_first_and_sums():
    net = image_backbone()
    vim = VisionMamba(
        dict(embed_dims=DIMS, num_layers=2),
        img_size=16,
        patch_size=4,
        class_token='head',
        mixer_cfg=dict(d_state=4, divide_out=False),
    ).eval()
    vim.load_state_dict(dict(net.state_dict()), strict=True)
    x = torch.randn(2, 3, 20, 12)
    assert net(x)[0].equal(vim(x)[0])
    assert net.temporal_pos_embedding is None


@pytest.mark.parametrize(
    ('frames', 'size'), [(4, (16, 16)), (3, (16, 24)), (7, (8, 20))]
)
def test_forward_is_embedding_blocks_and_norm(frames, size):
    """Written down frame by frame, at the own size and at others."""
    net = backbone(out_type='raw')
    x = videos(frames, *size)
    grid = (frames, size[0] // 4, size[1] // 4)
    row, patches = net.pos_embed[:, :1], net.pos_embed[:, 1:]
    if grid[1:] != (4, 4):
        maps = patches.mT.unflatten(2, (4, 4))
        maps = F.interpolate(maps, grid[1:], mode='bicubic')
        patches = maps.flatten(2).mT
    temporal = net.temporal_pos_embedding
    if frames != STEPS:
        temporal = F.interpolate(temporal.mT, frames, mode='linear').mT
    sequence = [(net.cls_token + row).expand(2, -1, -1)]
    for t in range(frames):
        kernel = net.patch_embed.proj.weight[:, :, 0]
        maps = F.conv2d(x[:, :, t], kernel, net.patch_embed.proj.bias, 4)
        tokens = maps.flatten(2).mT + patches + temporal[:, t : t + 1]
        sequence.append(tokens)
    expected = torch.cat(sequence, 1)
    for layer in net.layers:
        expected = expected + layer.mixer(layer.norm(expected), grid)
    torch.testing.assert_close(net(x)[0], net.norm_f(expected), **CLOSE)


def test_directions_are_summed():
    """Unless their mean is asked for, as Vim takes it."""
    mixers = [
        backbone(mixer_cfg=kwargs).layers[0].mixer
        for kwargs in ({}, dict(divide_out=True))
    ]
    x = torch.randn(2, TOKENS, DIMS)
    total, mean = (mixer(x, GRID) for mixer in mixers)
    # The output projection has no bias here, which would not be doubled.
    assert mixers[0].out_proj.bias is None
    torch.testing.assert_close(total, 2 * mean, **CLOSE)


@pytest.mark.parametrize('tubelet', [1, 2, 3])
def test_tubelets(tubelet):
    net = backbone(num_frames=6, tubelet_size=tubelet, out_type='featmap')
    steps = 6 // tubelet
    assert net.temporal_pos_embedding.shape == (1, steps, DIMS)
    assert net.patch_embed.proj.weight.shape[2] == tubelet
    assert net(videos(6))[0].shape == (2, DIMS, steps, 4, 4)
    # What is beyond the last whole tubelet is not seen.
    x = videos(7 if tubelet > 1 else 6)
    assert net(x)[0].equal(net(x[:, :, :6])[0])


def test_patches_of_frames_may_overlap():
    net = backbone(stride=2, out_type='featmap')
    assert net.patch_embed.init_out_size == (7, 7)
    assert net.pos_embed.shape[1] == 50
    assert net(videos())[0].shape == (2, DIMS, 4, 7, 7)


def test_patches_of_frames_need_not_be_square():
    net = backbone(patch_size=(8, 4), tubelet_size=2, out_type='featmap')
    assert net.patch_embed.proj.kernel_size == (2, 8, 4)
    assert net.patch_embed.proj.stride == (2, 8, 4)
    assert net.pos_embed.shape[1] == 9
    assert net(videos())[0].shape == (2, DIMS, 2, 2, 4)
    with pytest.raises(ValueError, match='4x8 is smaller than a patch of 8x4'):
        net(videos(height=4, width=8))


def test_out_types_show_the_same_tokens():
    x = videos(3, 20, 12)
    shown = {
        out_type: backbone(out_type=out_type)(x)[0]
        for out_type in VideoMamba.OUT_TYPES
        if out_type != 'pooled'
    }
    tokens = shown['raw']
    assert tokens.shape == (2, 46, DIMS)
    assert shown['featmap'].shape == (2, DIMS, 3, 5, 3)
    assert shown['featmap'].flatten(2).mT.equal(tokens[:, 1:])
    assert shown['cls_token'].equal(tokens[:, 0])
    torch.testing.assert_close(
        shown['avg_featmap'], tokens[:, 1:].mean(1), **CLOSE
    )


def test_single_frames_without_temporal_embedding():
    net = backbone(out_type='raw')
    x = videos(1)
    (plain,) = net(x)
    (still,) = net(x, use_image=True)
    assert not still.equal(plain)
    nn.init.zeros_(net.temporal_pos_embedding)
    torch.testing.assert_close(net(x)[0], still, **CLOSE)
    # It is the image model, then.
    image = image_backbone(out_type='raw')
    state = dict(net.state_dict())
    del state['temporal_pos_embedding']
    weight = state['patch_embed.proj.weight']
    state['patch_embed.proj.weight'] = weight.squeeze(2)
    image.load_state_dict(state)
    torch.testing.assert_close(image(x.squeeze(2))[0], still, **CLOSE)


# ------------------------------------------------- taps and scan orders


@pytest.mark.parametrize('tap', ['out', 'residual'])
def test_taps_on_videos_sum_to_the_mixers_output(tap):
    net, grid = backbone(), (3, 5, 4)
    outputs, streams = [], []
    net.layers[1].mixer.register_forward_hook(
        lambda m, i, out: outputs.append(out)
    )
    net.layers[1].register_forward_pre_hook(
        lambda m, args: streams.append(args[0])
    )
    recorder = DirectionTapsRecorder(tap)
    recorder.initialize(net)
    with recorder:
        net(videos(3, 20, 16))
    records = recorder.get_record_data()[2:]
    assert [r.direction for r in records] == list(DIRECTIONS)
    assert all(r.grid == grid for r in records)
    total = sum(reorder(r.tokens, invert_order(r.order())) for r in records)
    expected = outputs[0][:, 1:]
    if tap == 'residual':
        expected = expected + 2 * streams[0][:, 1:]
    torch.testing.assert_close(total, expected, **CLOSE)
    assert net.class_token_slots(*grid) == (0,)
    assert net.class_token_positions('raster', *grid) == (0,)
    assert net.class_token_positions('raster_reverse', *grid) == (60,)
    order = net.scan_order('raster_reverse', *grid)
    assert order.tolist() == list(range(59, -1, -1))


# ------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='large'), "unknown VideoMamba arch 'large'; .*middle"),
        (dict(pool_type='max'), r"cls, avg, cls\+avg, .*, got 'max'"),
        (dict(out_type='maps'), 'raw, featmap, avg_featmap, cls_token, poo'),
        (dict(tubelet_size=8), 'num_frames of 4 is less than tubelet_size 8'),
        (dict(tubelet_size=0), 'tubelet_size must be at least 1'),
        (dict(stride=0), 'stride must be at least 1'),
        (dict(num_frames=None, tubelet_size=2), 'set num_frames, or leave'),
        (
            dict(num_frames=None, keep_temporal=True),
            'keep_temporal=True .*set',
        ),
        (dict(num_frames=0), 'num_frames must be at least 1, got 0'),
        (dict(num_frames='4'), "num_frames must be an integer, got '4'"),
        (dict(tubelet_size='1'), "tubelet_size must be an integer, got '1'"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        backbone(**kwargs)


def test_inputs_that_do_not_fit_are_named():
    image = torch.randn(1, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r'takes videos.*leave num_frames out'
    ):
        backbone()(image)
    with pytest.raises(ValueError, match=r'takes images.*set num_frames'):
        image_backbone()(videos())
    with pytest.raises(ValueError, match='use_image is for single frames'):
        backbone()(videos(), use_image=True)
    with pytest.raises(ValueError, match='use_image is for single frames'):
        image_backbone()(image, use_image=True)
    with pytest.raises(ValueError, match='frames of 1 is less than tubelet'):
        backbone(tubelet_size=2)(videos(1))
    with pytest.raises(ValueError, match='frames of 16x3 is smaller'):
        backbone()(videos(4, 16, 3))


# --------------------------------------------- mmpretrain's conventions


@pytest.mark.parametrize('stages', [-1, 0, 1, 2])
def test_frozen_stages(stages):
    net = backbone(frozen_stages=stages, drop_rate=0.5, out_type='raw').train()
    frozen = []
    if stages >= 0:
        frozen = ['pos_embed', 'temporal_pos', 'cls_token', 'patch_embed.']
        frozen += [f'layers.{i}.' for i in range(stages)]
    frozen += ['norm_f.'] if stages == 2 else []
    for name, parameter in net.named_parameters():
        expected = not name.startswith(tuple(frozen))
        assert parameter.requires_grad == expected, name
    assert net.drop_after_pos.training == (stages < 0)


def test_layer_depth_for_layerwise_learning_rates():
    net = backbone(out_type='pooled', out_indices=(0, 1))
    depths = {
        'pos_embed': 0,
        'temporal_pos_embedding': 0,
        'cls_token': 0,
        'patch_embed.proj.weight': 0,
        'layers.1.norm.weight': 2,
        'norm_f.weight': 3,
        'norm_layer0.weight': 3,
        'pool_norm.weight': 3,
    }
    assert_layer_depths(net, depths, 4)


def test_drop_path_grows():
    net = backbone(drop_path_rate=0.4, depth=3)
    rates = [layer.drop_path.drop_prob for layer in net.layers]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
