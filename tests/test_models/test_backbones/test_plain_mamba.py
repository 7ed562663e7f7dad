# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""PlainMamba as a backbone: sizes, start values, outputs, contract."""

import copy
import json
import math

import pytest
import torch
from backbone_cases import CLOSE, GOLDEN, assert_start_values, images
from helpers import build, pmamba_cfg, randomise, snapshot, vit_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.registry import MODELS
from plain_mamba_cases import backbone, outputs_of
from torch import nn

from transmamba_mm.contract import find_student
from transmamba_mm.models import PlainMamba
from transmamba_mm.models.layers import ConvPatchEmbed

# ------------------------------------------------------- size and names


@pytest.mark.parametrize(
    ('arch', 'count'),
    [
        ('L1', 7_358_656),
        ('L2', 25_760_832),
        ('L3', 50_507_456),
        ('pmamba-tiny', 4_150_848),
        ('pmamba-small', 13_746_816),
        ('pmamba-base', 49_527_552),
    ],
)
def test_presets_have_the_published_number_of_parameters(arch, count):
    with torch.device('meta'):
        net = PlainMamba(arch)
    assert sum(p.numel() for p in net.parameters()) == count


def classifier(arch, **kwargs):
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='transmamba.PlainMamba', arch=arch, **kwargs),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=192),
        )
    )


def test_state_dict_of_l1_is_the_official_one():
    text = (GOLDEN / 'state_keys_plainmamba_L1.json').read_text()
    expected = {}
    for key, shape in json.loads(text).items():
        # Layers 1 to 23 share one line; layer 0 has a convolution more.
        for i in range(1, 24) if '{i}' in key else [0]:
            expected[key.replace('{i}', str(i))] = shape
    assert len(expected) == 361
    with torch.device('meta'):
        state = classifier('L1').state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == expected


@pytest.mark.parametrize('stats', ['L1_after_init_weights', 'L1_ctor_only'])
def test_start_values_are_the_official_ones(stats):
    expected = json.loads((GOLDEN / 'init_stats_plainmamba.json').read_text())
    expected = expected[stats]
    ctor_only = stats == 'L1_ctor_only'
    model = classifier('L1', **(dict(init_cfg=[]) if ctor_only else {}))
    model.init_weights()
    parameters = dict(model.named_parameters())
    compared = {k: v for k, v in expected.items() if 'head.' not in k}
    assert len(compared) > 25
    assert_start_values(parameters, compared)


def test_step_size_bias_is_zero_after_the_training_start():
    arch = dict(embed_dims=16, num_layers=2)
    fresh = PlainMamba(arch=arch)
    kept = PlainMamba(arch=arch, init_cfg=[])
    for net in (fresh, kept):
        net.init_weights()
    for layer in fresh.layers:
        assert layer.mamba.dt_proj.bias.eq(0).all()
        assert layer.mamba.in_proj.bias.eq(0).all()
    steps = nn.functional.softplus(kept.layers[0].mamba.dt_proj.bias)
    slack = 1e-6
    assert steps.min() >= 1e-3 - slack
    assert steps.max() <= 0.1 + slack


@pytest.mark.parametrize('ratio', [0.5, 4])
def test_ffn_ratio_adds_exactly_one_mlp_and_norm_per_layer(ratio):
    plain = backbone()
    net = backbone(ffn_ratio=ratio)
    dims, hidden = 16, int(16 * ratio)
    mlp = 2 * dims * hidden + hidden + dims
    more = len(net.layers) * (mlp + 2 * dims)
    count = [sum(p.numel() for p in m.parameters()) for m in (plain, net)]
    assert count[1] - count[0] == more
    assert net.layers[0].ffn.layers[0][0].out_features == hidden
    x = images(16, 16)
    assert not torch.allclose(plain(x)[0], net(x)[0])


def test_ffn_is_pre_norm_with_residual():
    layer = backbone(ffn_ratio=2).layers[1]
    layer.mamba.out_proj.weight.data.zero_()
    layer.mamba.out_proj.bias.data.zero_()
    x = torch.randn(2, 6, 16)
    first, second = layer.ffn.layers[0][0], layer.ffn.layers[1]
    inner = nn.functional.gelu(first(layer.norm2(x)))
    torch.testing.assert_close(layer(x, (2, 3)), x + second(inner), **CLOSE)


def test_depthwise_convolution_replaces_the_stream():
    arch = dict(embed_dims=16, num_layers=2, layers_with_dwconv=(1,))
    net = backbone(arch=arch)
    assert net.layers[0].dw is None
    layer = net.layers[1]
    x = torch.randn(2, 6, 16)
    y = x + layer.mamba(layer.norm(x), (2, 3))
    conv, norm = layer.dw[0], layer.dw[1]
    assert conv.groups == 16
    assert conv.bias is None
    maps = y.transpose(1, 2).reshape(2, 16, 2, 3)
    maps = nn.functional.gelu(norm(conv(maps)))
    expected = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(x, (2, 3)), expected, **CLOSE)


@pytest.mark.parametrize('training', [False, True])
def test_gradients_of_one_image(training):
    """BatchNorm's are right in a batch of one as well."""
    arch = dict(embed_dims=16, num_layers=1, layers_with_dwconv=(0,))
    layer = backbone(arch=arch).double().train(training).layers[0]
    x = torch.randn(1, 15, 16, dtype=torch.double)
    weight = torch.randn_like(x)
    grads = []
    for batch in (x, x.repeat(2, 1, 1)):  # of the same mean and variance
        batch = batch.requires_grad_()
        (layer(batch, (5, 3)) * weight).sum().backward()
        grads.append(batch.grad[:1])
    torch.testing.assert_close(*grads)


# -------------------------------------------------------------- outputs


def test_without_a_position_embedding():
    with_one = backbone()
    net = backbone(with_pos_embed=False)
    assert net.pos_embed is None
    state = with_one.state_dict()
    state.pop('pos_embed').zero_()
    net.load_state_dict(state)
    x = images(20, 12)
    torch.testing.assert_close(net(x)[0], with_one(x)[0], **CLOSE)


def test_out_types_show_the_same_tokens():
    x = images(20, 12)
    state = backbone().state_dict()
    shown = {}
    for out_type in ('raw', 'featmap', 'avg_featmap'):
        net = backbone(out_type=out_type)
        net.load_state_dict(state)
        (shown[out_type],) = net(x)
    tokens = shown['raw']
    assert tokens.shape == (2, 15, 16)
    assert shown['featmap'].shape == (2, 16, 5, 3)
    assert shown['featmap'].flatten(2).mT.equal(tokens)
    torch.testing.assert_close(shown['avg_featmap'], tokens.mean(1), **CLOSE)


def test_early_outputs_have_norms_of_their_own():
    net = backbone(depth=3, out_type='raw', out_indices=(0, -2, 2))
    assert net.out_indices == (0, 1, 2)
    names = {n for n, _ in net.named_children() if 'norm_layer' in n}
    assert names == {'norm_layer0', 'norm_layer1'}
    modules = {i: layer for i, layer in enumerate(net.layers)}
    outs, seen = outputs_of(net, modules, images(16, 16))
    assert len(outs) == 3
    for i, norm in enumerate([net.norm_layer0, net.norm_layer1, net.ln1]):
        assert norm.eps == 1e-6
        torch.testing.assert_close(outs[i], norm(seen[i]), **CLOSE)
    # The norm of an early map is no part of the main path.
    net.norm_layer0.weight.data.zero_()
    again, _ = outputs_of(net, modules, images(16, 16))
    assert again[0].std() < 1
    assert not again[2].eq(0).all()


def test_final_norm_can_be_left_out():
    net = backbone(final_norm=False, out_type='raw')
    assert not [n for n, _ in net.named_parameters() if n.startswith('ln1')]
    (out,), seen = outputs_of(net, dict(last=net.layers[-1]), images(16, 16))
    assert out.equal(seen['last'])


@pytest.mark.parametrize('stem', ['conv', 'patch'])
@pytest.mark.parametrize('size', [(16, 16), (17, 23), (12, 40), (7, 5)])
def test_any_image_size_and_a_gradient_for_every_parameter(stem, size):
    net = backbone(stem=stem, out_type='featmap', eval_mode=False)
    (out,) = net(images(*size))
    assert out.shape[2:] == (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    out.square().sum().backward()
    for name, parameter in net.named_parameters():
        # A grid of one row needs no step up or down, and so on.
        if 'direction_Bs' not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
            assert parameter.grad.isfinite().all(), name


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([2, 4, 6, 14]),
)
def test_conv_stem_knows_its_grid(height, width, patch):
    stem = ConvPatchEmbed(3, 4, patch, 0, 4, (height, width)).eval()
    tokens, grid = stem(torch.zeros(1, 3, height, width))
    assert tokens.shape == (1, grid[0] * grid[1], 4)
    for side, now, built in zip((height, width), grid, stem.init_out_size):
        # The original rounds an odd image down here, and up on the way.
        assert built <= now <= built + side % 2


def test_position_embedding_is_stretched_to_the_grid():
    net = backbone(out_type='raw')
    x = images(24, 16)
    tokens, grid = net.patch_embed(x)
    assert grid == (6, 4)
    pos = net.pos_embed.transpose(1, 2).reshape(1, 16, 4, 4)
    pos = nn.functional.interpolate(
        pos, size=grid, mode='bicubic', align_corners=False
    )
    expected = tokens + pos.flatten(2).transpose(1, 2)
    for layer in net.layers:
        expected = layer(expected, grid)
    torch.testing.assert_close(net(x)[0], net.ln1(expected), **CLOSE)


def test_patch_stem_is_the_embedding_of_a_vit():
    vit = build(vit_cfg(), seed=1).backbone
    net = backbone(stem='patch')
    net.patch_embed.load_state_dict(vit.patch_embed.state_dict())
    x = images(16, 24)
    ours, grid = net.patch_embed(x)
    theirs, their_grid = vit.patch_embed(x)
    assert tuple(grid) == tuple(their_grid) == (4, 6)
    assert ours.equal(theirs)


# --------------------------------------------------- loading and saving


@pytest.mark.parametrize('target', [24, (16, 24), 8])
def test_loading_resizes_the_position_embedding(target):
    source = backbone(seed=1)
    net = backbone(img_size=target)
    untouched = snapshot(source)
    given_state = source.state_dict()
    net.load_state_dict(given_state)
    grid = net.patch_embed.init_out_size
    expected = resize_pos_embed(source.pos_embed, (4, 4), grid, 'bicubic', 0)
    assert net.pos_embed.equal(expected)
    # Neither the model nor the caller's dict was changed.
    assert given_state['pos_embed'].equal(untouched['pos_embed'])


def test_loading_keeps_a_fitting_position_embedding():
    source = backbone(seed=1, img_size=(8, 32))
    net = backbone(img_size=(8, 32))
    net.load_state_dict(source.state_dict())
    assert net.pos_embed.equal(source.pos_embed)


def test_loading_refuses_an_unknown_grid_that_is_no_square():
    source = backbone(img_size=(8, 24))
    without_note = dict(source.state_dict())
    with pytest.raises(RuntimeError, match='size mismatch for pos_embed'):
        backbone().load_state_dict(without_note)


def test_state_dict_round_trip():
    source, net = backbone(seed=1), backbone(seed=2)
    x = images(16, 16)
    assert not torch.allclose(source(x)[0], net(x)[0])
    net.load_state_dict(source.state_dict(), strict=True)
    assert net(x)[0].equal(source(x)[0])


def test_deepcopy_is_independent():
    net = backbone()
    clone = copy.deepcopy(net)
    x = images(16, 16)
    assert clone(x)[0].equal(net(x)[0])
    expected = net(x)[0]
    randomise(clone, 3)
    assert net(x)[0].equal(expected)
    # The clone fits a loaded embedding to its own grid, not to net's.
    net.patch_embed.init_out_size = (1, 1)
    clone.load_state_dict(backbone(img_size=24).state_dict())
    assert clone.pos_embed.shape == (1, 16, 16)


# ------------------------------------------------------------- contract


def test_layer_dims_directions_and_blocks():
    net = backbone(depth=3, directions=('column', 'raster_reverse'))
    assert net.layer_dims == (16, 16, 16)
    assert net.num_layers == 3
    assert net.directions == ('column', 'raster_reverse')
    assert net.blocks() == list(net.layers)
    assert [tuple(t.out) for t in net.taps()] == [net.directions] * 3
    assert net.class_token_positions('column', 4, 4) == ()
    assert net.scan_order('column', 2, 3).tolist() == [0, 3, 1, 4, 2, 5]


def test_every_parameter_of_a_layer_has_the_expected_role():
    roles = backbone(ffn_ratio=2, stem='patch').param_roles()
    assert roles['patch_embed.projection.bias'] == 'patch_embed.bias'
    assert roles['pos_embed'] == 'pos_embed'
    assert roles['ln1.weight'] == 'final_norm.weight'
    layer = {
        name.removeprefix('layers.1.'): role.removeprefix('layers.1.')
        for name, role in roles.items()
        if name.startswith('layers.1.')
    }
    expected = {
        'norm': 'mixer_norm',
        'norm2': 'ffn_norm',
        'ffn.layers.0.0': 'ffn_in',
        'ffn.layers.1': 'ffn_out',
        'mamba.out_proj': 'mixer_out',
        'mamba.in_proj': 'ssm.in_proj',
        'mamba.conv2d': 'ssm.conv',
        'mamba.dt_proj': 'ssm.dt_proj',
    }
    expected = {
        f'{name}.{leaf}': f'{role}.{leaf}'
        for name, role in expected.items()
        for leaf in ('weight', 'bias')
    }
    expected['mamba.x_proj.weight'] = 'ssm.x_proj.weight'
    expected['mamba.A_log'] = 'ssm.A'
    expected['mamba.D'] = 'ssm.D'
    expected['mamba.direction_Bs'] = 'ssm.direction'
    assert layer == expected


def test_find_mamba_backbone():
    model = build(pmamba_cfg())
    assert find_student(model) is model.backbone
    assert find_student(model.backbone) is model.backbone
    with pytest.raises(TypeError, match='found 0'):
        find_student(build(vit_cfg()))
    with pytest.raises(TypeError, match='found 2'):
        find_student(nn.ModuleList([backbone(), backbone()]))


# ------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (dict(arch='L4'), ValueError, "unknown PlainMamba arch 'L4'"),
        (dict(arch=dict(embed_dims=8)), ValueError, 'needs the keys'),
        (
            dict(arch=dict(embed_dims=8, num_layers=1, depth=2)),
            ValueError,
            "got .*'depth'",
        ),
        (dict(stem='vit'), ValueError, "'conv' or 'patch', got 'vit'"),
        (dict(directions=('up',)), KeyError, "unknown scan order 'up'"),
        (dict(directions=()), ValueError, 'at least one scan order'),
        (dict(directions=['raster'] * 2), ValueError, 'each once'),
        (dict(mixer_cfg=dict(conv_size=4)), ValueError, 'odd, got 4'),
        (dict(out_type='cls_token'), ValueError, "no out_type 'cls_token'"),
        (dict(out_type='tokens'), ValueError, 'raw, featmap, avg_featmap'),
        (dict(out_indices=2), ValueError, 'out_indices holds 2'),
        (dict(out_indices=(0, -3)), ValueError, 'out_indices holds -3'),
        (dict(patch_size=5), ValueError, "stem='patch' for odd sizes"),
        (dict(patch_size=(8, 4)), ValueError, r'an integer, got \(8, 4\)'),
        (dict(stem='patch', patch_size=0), ValueError, 'at least 1, got 0'),
        (dict(stem='patch', img_size=0), ValueError, 'at least 1, got 0'),
        (dict(norm_cfg=dict(type='BN')), ValueError, 'tokens .*RMSNorm'),
        *(
            (
                dict(arch=dict(embed_dims=8, num_layers=3, **{key: value})),
                ValueError,
                f'{key} must be .*{rule}, got ',
            )
            for key, value, rule in (
                ('layers_with_dwconv', (7, -1), r'each in 0\.\.2'),
                ('layers_with_dwconv', (3,), r'each in 0\.\.2'),
                ('layers_with_dwconv', (-1,), r'each in 0\.\.2'),
                ('layers_with_dwconv', 1, r'each in 0\.\.2'),
                ('num_convs_patch_embed', -1, 'at least 0'),
                ('num_convs_patch_embed', '1', 'an integer'),
            )
        ),
    ],
)
def test_mistakes_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        backbone(**kwargs)


def test_a_preset_is_not_shared_between_models():
    before = copy.deepcopy(PlainMamba.ARCHS)
    with torch.device('meta'):
        PlainMamba('L1')
    assert before == PlainMamba.ARCHS
