# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Vim as a backbone: sizes, start values, outputs, contract."""

import copy
import json
import math

import pytest
import torch
from backbone_cases import CLOSE, GOLDEN, assert_start_values, count, images
from helpers import randomise
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.registry import MODELS
from torch import nn
from vision_mamba_cases import CLASS_TOKENS, DIRECTIONS, backbone, classifier

from transmamba_mm.checkpoints.formats import VIM
from transmamba_mm.contract.class_tokens import (
    join_class_tokens,
    split_class_tokens,
)
from transmamba_mm.models import VisionMamba

# ------------------------------------------------------- size and names


@pytest.mark.parametrize(
    ('arch', 'stride', 'expected'),
    [
        ('tiny', None, 6_955_008),
        ('tiny', 8, 7_057_344),
        ('small', None, 25_411_584),
        ('small', 8, 25_616_256),
        ('base', None, 96_829_440),
        ('tiny-d12', None, 6_955_200),
        ('small-d12', None, 25_411_968),
        ('tiny-d12-ffn4', None, 7_128_000),
        ('small-d12-ffn4', None, 27_084_672),
    ],
)
def test_presets_have_the_published_number_of_parameters(
    arch, stride, expected
):
    with torch.device('meta'):
        net = VisionMamba(arch, stride=stride)
    assert count(net) == expected


@pytest.mark.parametrize(
    ('arch', 'classes', 'dims', 'expected'),
    [
        ('tiny', 1000, 192, 7_148_008),
        ('small', 1000, 384, 25_796_584),
        ('base', 1000, 768, 97_598_440),
        # The two readings of ViM-T and ViM-S in TransMamba's Table 1, which
        # prints 7.0 and 25.5 M.
        ('tiny', 100, 192, 6_974_308),
        ('small', 100, 384, 25_450_084),
        ('tiny-d12', 100, 192, 6_974_500),
        ('small-d12', 100, 384, 25_450_468),
        # The FFN of its text: 7.15 and 27.12 M.
        ('tiny-d12-ffn4', 100, 192, 7_147_300),
        ('small-d12-ffn4', 100, 384, 27_123_172),
    ],
)
def test_classifiers_have_the_published_number(arch, classes, dims, expected):
    with torch.device('meta'):
        assert count(MODELS.build(classifier(arch, classes, dims))) == expected


def test_state_dict_of_tiny_is_the_official_one():
    text = (GOLDEN / 'state_keys_vim_tiny.json').read_text()
    expected = {}
    for key, shape in json.loads(text).items():
        for i in range(24) if '{i}' in key else [0]:
            expected[key.replace('{i}', str(i))] = shape
    assert len(expected) == 415
    with torch.device('meta'):
        model = MODELS.build(classifier('tiny'))
    state = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert state == VIM.to_classifier(expected)


def test_start_values_are_the_official_ones():
    stats = json.loads((GOLDEN / 'init_stats_vim.json').read_text())
    (expected,) = stats.values()
    model = MODELS.build(classifier('tiny'))
    model.init_weights()
    parameters = dict(model.backbone.named_parameters())
    compared = {k: v for k, v in expected.items() if 'head.' not in k}
    assert len(compared) == 22
    assert_start_values(parameters, compared)


# -------------------------------------------------------------- outputs


def test_class_tokens_are_joined_and_split():
    patches = torch.arange(1.0, 6).view(1, 5, 1)
    classes = torch.tensor([-1.0, -2.0]).view(1, 2, 1)
    for slots in [(0, 1), (0, 6), (2, 5), (5, 6)]:
        tokens = join_class_tokens(classes, patches, slots)
        assert [tokens[0, slot, 0] for slot in slots] == [-1, -2]
        left, right = split_class_tokens(tokens, slots)
        assert left.equal(classes)
        assert right.equal(patches)
    assert join_class_tokens(classes[:, :0], patches, ()).equal(patches)
    assert split_class_tokens(patches, ())[1].equal(patches)


@pytest.mark.parametrize(
    ('class_token', 'slots'),
    [
        ('middle', (7,)),
        ('head', (0,)),
        ('double', (0, 16)),
        ('none', ()),
    ],
)
def test_out_types_show_the_same_tokens(class_token, slots):
    x = images(20, 12)  # 5 x 3 patches
    shown = {}
    for out_type in VisionMamba.OUT_TYPES:
        if class_token == 'none' and out_type == 'cls_token':
            continue
        net = backbone(class_token=class_token, out_type=out_type)
        (shown[out_type],) = net(x)
    tokens = shown['raw']
    assert net.class_token_slots(5, 3) == slots
    assert tokens.shape == (2, 15 + len(slots), 16)
    patches = [i for i in range(tokens.shape[1]) if i not in slots]
    patches = tokens[:, patches]
    assert shown['featmap'].shape == (2, 16, 5, 3)
    assert shown['featmap'].flatten(2).mT.equal(patches)
    torch.testing.assert_close(shown['avg_featmap'], patches.mean(1), **CLOSE)
    if slots:
        expected = tokens[:, list(slots)].mean(1)
        torch.testing.assert_close(shown['cls_token'], expected, **CLOSE)


@pytest.mark.parametrize('class_token', CLASS_TOKENS)
def test_forward_is_embedding_blocks_and_norm(class_token):
    """Written down, on another grid than the position embedding's."""
    net = backbone(class_token=class_token, out_type='raw')
    x = images(24, 16)
    patches, grid = net.patch_embed(x)
    assert grid == (6, 4)
    slots = net.class_token_slots(*grid)
    own = net.class_token_slots(4, 4)
    pos = net.pos_embed[:, [i for i in range(16 + len(own)) if i not in own]]
    pos = nn.functional.interpolate(
        pos.mT.unflatten(2, (4, 4)), size=grid, mode='bicubic'
    )
    tokens = iter((patches + pos.flatten(2).mT).unbind(1))
    names = iter(net.CLASS_TOKENS[class_token])
    sequence = [
        getattr(net, next(names))[:, 0].expand(2, -1)
        + net.pos_embed[:, own[slots.index(i)]]
        if i in slots
        else next(tokens)
        for i in range(24 + len(slots))
    ]
    expected = torch.stack(sequence, 1)
    for layer in net.layers:
        expected = expected + layer.mixer(layer.norm(expected), grid)
    torch.testing.assert_close(net(x)[0], net.norm_f(expected), **CLOSE)


def test_early_outputs_have_norms_of_their_own():
    net = backbone(depth=3, out_type='raw', out_indices=(0, -2, 2))
    assert net.out_indices == (0, 1, 2)
    names = {n for n, _ in net.named_children() if 'norm_layer' in n}
    assert names == {'norm_layer0', 'norm_layer1'}
    seen = []
    for layer in net.layers:
        layer.register_forward_hook(lambda m, i, out: seen.append(out))
    outs = net(images(16, 16))
    norms = [net.norm_layer0, net.norm_layer1, net.norm_f]
    for out, norm, tokens in zip(outs, norms, seen):
        torch.testing.assert_close(out, norm(tokens), **CLOSE)


def test_norms_and_final_norm_can_be_chosen():
    net = backbone(norm_cfg=dict(type='LN', eps=1e-5), out_type='raw')
    assert all(isinstance(m.norm, nn.LayerNorm) for m in net.layers)
    assert isinstance(net.norm_f, nn.LayerNorm)
    assert net.norm_f.eps == 1e-5
    bare = backbone(final_norm=False, out_type='raw')
    assert bare.norm_f is None
    seen = []
    bare.layers[-1].register_forward_hook(lambda m, i, o: seen.append(o))
    assert bare(images(16, 16))[0].equal(seen[0])


@pytest.mark.parametrize('kind', ['v1', 'v2'])
@pytest.mark.parametrize('size', [(16, 16), (17, 23), (12, 40), (4, 9)])
@pytest.mark.parametrize('class_token', CLASS_TOKENS)
def test_any_image_size_and_a_gradient_for_every_parameter(
    kind, size, class_token
):
    net = backbone(
        class_token=class_token,
        mixer_cfg=dict(bimamba_type=kind),
        out_type='raw',
        eval_mode=False,
    )
    (out,) = net(images(*size))
    patches = (size[0] // 4) * (size[1] // 4)
    assert out.shape == (2, patches + net.num_extra_tokens, 16)
    # Not the squares: the norm keeps their sum nearly constant.
    out.pow(3).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ('size', 'patch', 'stride', 'grid'),
    [
        ((16, 24), 4, 2, (7, 11)),
        ((17, 9), 8, 3, (4, 1)),
        ((16, 16), 4, None, (4, 4)),
        ((16, 24), (4, 8), None, (4, 3)),
        ((16, 24), (4, 8), 4, (4, 5)),
        ((16, 24), (8, 4), (8, 2), (2, 11)),
    ],
)
def test_patches_may_overlap(size, patch, stride, grid):
    net = backbone(
        img_size=size, patch_size=patch, stride=stride, out_type='featmap'
    )
    assert net.patch_embed.init_out_size == grid
    assert net.pos_embed.shape[1] == math.prod(grid) + 1
    assert net(images(*size))[0].shape[2:] == grid


# ------------------------------------------------- taps and scan orders


@pytest.mark.parametrize('class_token', CLASS_TOKENS)
def test_taps_sum_to_the_mixers_output_and_know_the_class_tokens(class_token):
    net = backbone(class_token=class_token)
    layer, grid, shown = net.layers[1], (5, 3), {}
    for name, tap in layer.mixer.taps.out.items():
        tap.register_forward_hook(
            lambda m, args, out, name=name: shown.update({name: out})
        )
    outputs = []
    layer.mixer.register_forward_hook(lambda m, i, o: outputs.append(o))
    net(images(20, 12))
    slots = net.class_token_slots(*grid)
    whole = torch.zeros_like(outputs[0])
    patches, classes = [], []
    for name in net.directions:
        places = net.class_token_positions(name, *grid)
        assert list(places) == sorted(places)
        order = net.scan_order(name, *grid)
        assert sorted(order.tolist()) == list(range(15))
        classes_here, tokens = split_class_tokens(shown[name], places)
        patches.append(torch.empty_like(tokens).index_copy(1, order, tokens))
        reverse = name == DIRECTIONS[1]
        classes.append(classes_here.flip(1) if reverse else classes_here)
    whole = join_class_tokens(sum(classes), sum(patches), slots)
    torch.testing.assert_close(whole, outputs[0], **CLOSE)


def test_layer_dims_directions_and_blocks():
    net = backbone(depth=3)
    assert net.layer_dims == (16, 16, 16)
    assert net.num_layers == 3
    assert net.num_extra_tokens == 1
    assert net.directions == DIRECTIONS
    assert net.blocks() == list(net.layers)
    assert [tuple(t.out) for t in net.taps()] == [DIRECTIONS] * 3
    assert net.class_token_positions('raster', 2, 3) == (3,)
    assert net.class_token_positions('raster_reverse', 1, 3) == (2,)
    double = backbone(class_token='double')
    assert double.class_token_positions('raster_reverse', 2, 3) == (0, 7)


# --------------------------------------------------- loading and saving


@pytest.mark.parametrize('class_token', CLASS_TOKENS)
def test_state_dict_round_trip(class_token):
    source, net = (backbone(class_token=class_token, seed=s) for s in (1, 2))
    x = images(16, 16)
    assert not torch.allclose(source(x)[0], net(x)[0])
    net.load_state_dict(source.state_dict(), strict=True)
    assert net(x)[0].equal(source(x)[0])
    clone = copy.deepcopy(net)
    randomise(clone, 3)
    assert net(x)[0].equal(source(x)[0])


@pytest.mark.parametrize('class_token', CLASS_TOKENS)
@pytest.mark.parametrize('target', [24, (16, 24), 8])
def test_loading_resizes_the_position_embedding(class_token, target):
    source = backbone(class_token=class_token, seed=1)
    net = backbone(class_token=class_token, img_size=target)
    net.load_state_dict(source.state_dict())
    grid = net.patch_embed.init_out_size
    old, new = (net.class_token_slots(*g) for g in ((4, 4), grid))
    classes, patches = split_class_tokens(source.pos_embed, old)
    got_classes, got_patches = split_class_tokens(net.pos_embed, new)
    expected = resize_pos_embed(patches, (4, 4), grid, 'bicubic', 0)
    assert got_patches.equal(expected)
    assert got_classes.equal(classes)


# ------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='huge'), "unknown VisionMamba arch 'huge'"),
        (dict(arch=dict(embed_dims=8)), 'needs the keys'),
        (
            dict(arch=dict(embed_dims=8, num_layers=1, depth=2)),
            "got .*'depth'",
        ),
        (dict(class_token='tail'), "head, middle, double, got 'tail'"),
        (
            dict(class_token='none', out_type='cls_token'),
            "set out_type='avg_featmap'",
        ),
        (dict(out_type='tokens'), 'raw, featmap, avg_featmap, cls_token'),
        (dict(out_indices=2), 'out_indices holds 2'),
        (dict(stride=0), 'stride must be at least 1, got 0'),
        (dict(img_size=(16, 3)), 'img_size 16x3 is smaller than a patch'),
        (dict(mixer_cfg=dict(bimamba_type='v3')), "'v1' or 'v2', got 'v3'"),
        (dict(mixer_cfg=dict(d_conv=0)), 'd_conv must be at least 1, got 0'),
        (dict(mixer_cfg=dict(dt_min=0)), 'dt_min must be above 0'),
        (dict(patch_size=(4, 0)), r'patch_size must be at least 1, got \(4'),
        (dict(stride=1.5), r'stride must be \(H, W\), or .* got 1\.5'),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        backbone(**kwargs)
    with pytest.raises(ValueError, match='an image of 16x3 is smaller'):
        backbone()(images(16, 3))
