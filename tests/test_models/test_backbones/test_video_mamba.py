# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VideoMamba: sizes, start values, videos, masks, pooling, checkpoints."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import CLOSE, GOLDEN, assert_start_values, count
from helpers import (
    TINY_CLASSES,
    assert_distillation_learns,
    build,
    plan_from,
    randomise,
    vit_cfg,
)
from mmpretrain.registry import MODELS
from torch import nn

from transmamba_mm.distill.recorders import DirectionTapsRecorder
from transmamba_mm.models import (
    ClipDecoders,
    VideoMamba,
    VisionMamba,
    convert_videomamba_state_dict,
)
from transmamba_mm.models.necks.clip_decoders import sinusoids
from transmamba_mm.ops import invert_order, reorder

DIRECTIONS = ('raster', 'raster_reverse')
DIMS, STEPS, GRID = 16, 4, (4, 4, 4)
TOKENS = 1 + math.prod(GRID)


def backbone(seed=0, depth=2, **kwargs):
    """A video model of four frames with 4x4 patches."""
    kwargs.setdefault('arch', dict(embed_dims=DIMS, num_layers=depth))
    kwargs.setdefault('img_size', 16)
    kwargs.setdefault('num_frames', STEPS)
    kwargs['mixer_cfg'] = dict(d_state=4, **kwargs.get('mixer_cfg', {}))
    torch.manual_seed(seed)
    net = VideoMamba(**{'patch_size': 4, **kwargs})
    randomise(net, seed)
    return net.eval()


def image_backbone(**kwargs):
    return backbone(num_frames=None, **kwargs)


def classifier(arch, classes, dims, **kwargs):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='transmamba.VideoMamba', arch=arch, **kwargs),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=dims),
    )


def tiny_student(**kwargs):
    return classifier(
        dict(embed_dims=12, num_layers=2),
        TINY_CLASSES,
        12,
        img_size=16,
        patch_size=4,
        mixer_cfg=dict(d_state=4),
        **kwargs,
    )


def videos(frames=STEPS, height=16, width=16, batch=2):
    return torch.randn(batch, 3, frames, height, width)


def some_mask(kept=20, length=TOKENS, batch=2, seed=3):
    """Keeps the class token and as many patches in each row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[:, 0] = False
    for row in mask:
        order = torch.randperm(length - 1, generator=generator)
        row[1 + order[:kept]] = False
    return mask


# ------------------------------------------------------ size and names


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


@pytest.mark.parametrize(
    ('name', 'arch', 'dims', 'classes', 'frames', 'entries'),
    [
        ('image/videomamba_tiny', 'tiny', 192, 1000, None, 415),
        ('video/videomamba_middle', 'middle', 576, 400, 8, 552),
    ],
)
def test_state_dict_is_the_official_one(
    name, arch, dims, classes, frames, entries
):
    text = (GOLDEN / 'state_keys_videomamba.json').read_text()
    official = json.loads(text)[name]
    expected = {}
    for key, shape in official['keys'].items():
        for i in range(official['depth']) if '{i}' in key else [0]:
            expected[key.replace('{i}', str(i))] = shape
    assert len(expected) == entries
    with torch.device('meta'):
        config = classifier(arch, classes, dims, num_frames=frames)
        model = MODELS.build(config)
    state = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert state == convert_videomamba_state_dict(expected)


def test_state_dict_of_a_retrieval_model():
    names = ['cls_token', 'norm.weight', 'pool_norm.bias']
    names += ['clip_decoder.1.head.weight', 'layers.0.norm.weight']
    expected = [
        'backbone.cls_token',
        'backbone.norm_f.weight',
        'backbone.pool_norm.bias',
        'neck.clip_decoder.1.head.weight',
        'backbone.layers.0.norm.weight',
    ]
    alone = dict.fromkeys(names)
    assert list(convert_videomamba_state_dict(alone)) == expected
    whole = {f'vision_encoder.{name}': None for name in names}
    whole |= {'text_encoder.norm.weight': None, 'temp': None}
    found = convert_videomamba_state_dict(whole)
    assert list(found) == expected


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


# ----------------------------------------------------- images and videos


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


# -------------------------------------------------------------- loading


@pytest.mark.parametrize('size', [24, (16, 24), 8])
@pytest.mark.parametrize('frames', [2, 4, 9])
def test_loading_resizes_both_position_embeddings(size, frames):
    source = backbone(seed=1)
    net = backbone(img_size=size, num_frames=frames)
    net.load_state_dict(source.state_dict(), strict=True)
    assert net.pos_embed[:, :1].equal(source.pos_embed[:, :1])
    maps = source.pos_embed[:, 1:].mT.unflatten(2, (4, 4))
    maps = F.interpolate(maps, net.patch_embed.init_out_size, mode='bicubic')
    expected = maps.flatten(2).mT
    torch.testing.assert_close(net.pos_embed[:, 1:], expected, **CLOSE)
    expected = source.temporal_pos_embedding
    if frames != STEPS:
        expected = F.interpolate(expected.mT, frames, mode='linear').mT
    assert net.temporal_pos_embedding.equal(expected)
    # The same as stretching at run time.
    x = videos(frames, *net.patch_embed.init_out_size)
    x = x.repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.testing.assert_close(net(x)[0], source(x)[0], **CLOSE)


@pytest.mark.parametrize('tubelet', [1, 2, 3])
def test_image_checkpoints_are_inflated(tubelet, capsys):
    image = image_backbone(seed=1)
    net = backbone(num_frames=6, tubelet_size=tubelet)
    with torch.no_grad():
        net.temporal_pos_embedding.zero_()
    net.load_state_dict(image.state_dict(), strict=True)
    assert net.temporal_pos_embedding.eq(0).all()
    frame = torch.randn(2, 3, 16, 16)
    still = frame.unsqueeze(2).repeat(1, 1, 6, 1, 1)
    tokens, grid = net.patch_embed(still)
    expected, _ = image.patch_embed(frame)
    expected = expected.repeat(1, 6 // tubelet, 1)
    torch.testing.assert_close(tokens, expected, **CLOSE)
    assert grid == (6 // tubelet, 4, 4)
    # Each tubelet looks at its middle frame.
    moving = torch.randn_like(still)
    tokens, _ = net.patch_embed(moving)
    middle = moving[:, :, tubelet // 2 :: tubelet]
    expected = [image.patch_embed(f)[0] for f in middle.unbind(2)]
    torch.testing.assert_close(tokens, torch.cat(expected, 1), **CLOSE)
    # One frame is an image, but for the temporal embedding of zeros.
    single = still[:, :, :tubelet]
    torch.testing.assert_close(net(single)[0], image(frame)[0], **CLOSE)


def test_inflation_of_a_larger_image_model_in_a_classifier():
    image = classifier(dict(embed_dims=12, num_layers=1), 5, 12, img_size=64)
    video = classifier(
        dict(embed_dims=12, num_layers=1), 5, 12, img_size=48, num_frames=2
    )
    source, model = build(image), build(video)
    model.load_state_dict(source.state_dict(), strict=True)
    assert model.backbone.pos_embed.shape[1] == 10
    assert model.head.fc.weight.equal(source.head.fc.weight)


def test_a_video_checkpoint_without_its_temporal_embedding_is_an_error():
    state = backbone().state_dict()
    del state['temporal_pos_embedding']
    with pytest.raises(RuntimeError, match='temporal_pos_embedding'):
        backbone().load_state_dict(state)


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
    net = image_backbone(out_type='pooled', keep_temporal=True)
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


# -------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='large'), "unknown VideoMamba arch 'large'; .*middle"),
        (dict(pool_type='max'), r"cls, avg, cls\+avg, .*, got 'max'"),
        (dict(out_type='maps'), 'raw, featmap, avg_featmap, cls_token, poo'),
        (dict(tubelet_size=8), 'num_frames of 4 is less than tubelet_size 8'),
        (dict(tubelet_size=0), 'tubelet_size must be at least 1'),
        (dict(stride=0), 'stride must be at least 1'),
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
    for name, depth in depths.items():
        assert name in dict(net.named_parameters())
        assert net.get_layer_depth(name) == (depth, 4)


def test_drop_path_grows():
    net = backbone(drop_path_rate=0.4, depth=3)
    rates = [layer.drop_path.drop_prob for layer in net.layers]
    assert rates == pytest.approx([0.0, 0.2, 0.4])


# ------------------------------------------------- transfer and distill


def test_subclones_a_vit():
    teacher = build(vit_cfg(), seed=1)
    student = build(
        classifier(
            dict(embed_dims=16, num_layers=2, expand=1),
            3,
            16,
            img_size=16,
            patch_size=4,
        )
    )
    plan, _ = plan_from(teacher, student)
    plan.apply(student)
    ours, theirs = student.backbone, teacher.backbone
    assert ours.pos_embed.equal(theirs.pos_embed)
    assert ours.cls_token.equal(theirs.cls_token)
    x = torch.randn(2, 3, 16, 16)
    read = []
    for net in (ours, theirs):
        net.layers[0].register_forward_pre_hook(
            lambda m, args: read.append(args[0])
        )
    student(x), teacher(x)
    torch.testing.assert_close(read[0], read[1], **CLOSE)


def test_subcloning_a_video_model_leaves_what_images_lack():
    teacher = build(vit_cfg(), seed=1)
    student = build(
        classifier(
            dict(embed_dims=16, num_layers=2, expand=1),
            3,
            16,
            img_size=16,
            patch_size=4,
            num_frames=2,
        )
    )
    plan, entries = plan_from(teacher, student)
    rules = {name: entry.rule for name, entry in entries.items()}
    assert rules['pos_embed'] == rules['cls_token'] == 'copy'
    assert rules['temporal_pos_embedding'] == 'fresh'
    plan.apply(student)
    assert student(videos(2)).shape == (2, 3)


def test_one_step_of_distillation(tmp_path):
    assert_distillation_learns(tiny_student(), tmp_path)
