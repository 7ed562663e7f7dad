# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VMamba as a backbone: sizes, start values, outputs, contract."""

import json

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import CLOSE, GOLDEN, assert_start_values, count, images
from golden_vmamba import parse_forward_type
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

from transmamba_mm.distill import DirectionTapsRecorder
from transmamba_mm.models import VMamba, convert_vmamba_state_dict
from transmamba_mm.models.layers.vmamba_blocks import (
    ConvDownsample,
    MergeDownsample,
    NoDownsample,
    VMambaMlp,
)
from transmamba_mm.transfer.ssm import build_ssm_source

DEPTHS = {'tiny-s1l8': (2, 2, 8, 2), 'vanilla-tiny': (2, 2, 9, 2)}

# Small, with every kind of part.
VARIANTS = {
    'v2': {},
    'vanilla': dict(
        d_state=2,
        ssm_ratio=2.0,
        conv_bias=True,
        gated=True,
        mlp_ratio=0.0,
        patch_embed='v1',
        downsample='v1',
    ),
    'gated_mlp': dict(gated_mlp=True, out_act=True, pos_embed=True),
    'bare': dict(out_norm=False, patch_norm=False, gated=True, gate_act=False),
    'rounds_down': dict(downsample='v2'),
}
every_variant = pytest.mark.parametrize(
    'variant', VARIANTS.values(), ids=list(VARIANTS)
)


def small_arch(depths=(1, 2, 1), dims=8, **options):
    options = {'mlp_ratio': 2.0, **options}
    return dict(embed_dims=dims, depths=depths, **options)


def backbone(seed=0, eval_mode=True, variant=None, **kwargs):
    kwargs.setdefault('arch', small_arch(**(variant or {})))
    kwargs.setdefault('img_size', 32)
    torch.manual_seed(seed)
    net = VMamba(**kwargs)
    randomise(net, seed)
    return net.eval() if eval_mode else net


def classifier(arch, classes=1000, dims=768, **kwargs):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='transmamba.VMamba', arch=arch, **kwargs),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=dims),
    )


def tiny_student(**options):
    arch = small_arch(**{'depths': (1, 2), 'dims': 6, **options})
    return classifier(arch, TINY_CLASSES, 2 * arch['embed_dims'])


# ------------------------------------------------------ size and names


@pytest.mark.parametrize(
    ('arch', 'classes', 'with_head', 'without'),
    [
        ('tiny-s1l8', 1000, 30_249_064, 29_480_064),
        ('small-s1l20', 1000, 49_012_840, 48_243_840),
        ('base-s1l20', 1000, 86_614_504, 85_589_504),
        ('tiny-s2l5', 1000, 30_705_832, 29_936_832),
        ('small-s2l15', 1000, 50_147_752, 49_378_752),
        ('base-s2l15', 1000, 88_557_800, 87_532_800),
        ('vanilla-tiny', 1000, 22_893_448, 22_124_448),
        ('vanilla-small', 1000, 44_417_416, 43_648_416),
        ('vanilla-base', 1000, 76_254_056, 75_229_056),
        # The readings of VMamba-T in TransMamba's Table 1, which prints
        # 40.5 M, and what its authors published later.
        ('transmamba-tiny', 1000, 40_487_080, 39_718_080),
        ('transmamba-tiny-conv-bias', 1000, 40_498_216, 39_729_216),
        ('transmamba-tiny-gated', 1000, 40_492_648, 39_723_648),
        ('transmamba-tiny-wide', 100, 38_375_396, 38_272_896),
    ],
)
def test_presets_have_the_published_number_of_parameters(
    arch, classes, with_head, without
):
    with torch.device('meta'):
        dims = VMamba(arch).embed_dims
        model = MODELS.build(classifier(arch, classes, dims))
    assert count(model.backbone) == without
    assert count(model) == with_head


def test_every_preset_is_counted():
    counted = test_presets_have_the_published_number_of_parameters.pytestmark
    assert [case[0] for case in counted[0].args[1]] == list(VMamba.ARCHS)


def official_state(arch):
    """Names and shapes of an official checkpoint, on the meta device."""
    text = (GOLDEN / 'state_keys_vmamba.json').read_text()
    state = {}
    for key, shape in json.loads(text)[arch].items():
        stage = int(key.split('.')[1]) if key.startswith('layers') else 0
        for i in range(DEPTHS[arch][stage] if '{i}' in key else 1):
            name = key.replace('{i}', str(i))
            state[name] = torch.empty(shape, device='meta')
    return state


@pytest.mark.parametrize(
    ('arch', 'entries'), [('tiny-s1l8', 276), ('vanilla-tiny', 212)]
)
def test_state_dict_is_the_official_one(arch, entries):
    official = official_state(arch)
    assert len(official) == entries
    with torch.device('meta'):
        model = MODELS.build(classifier(arch))
    own = {key: value.shape for key, value in model.state_dict().items()}
    converted = convert_vmamba_state_dict(official)
    assert {key: value.shape for key, value in converted.items()} == own


@pytest.mark.parametrize('arch', list(DEPTHS))
def test_start_values_are_the_official_ones(arch):
    stats = json.loads((GOLDEN / 'init_stats_vmamba.json').read_text())[arch]
    # Statistics of the first and of the last block: the others need not be.
    options = dict(VMamba.ARCHS[arch], depths=(1, 1, 1, 2))
    torch.manual_seed(0)
    net = VMamba(options)
    net.init_weights()
    parameters = dict(net.named_parameters())
    assert len(stats) == {'tiny-s1l8': 50, 'vanilla-tiny': 35}[arch]
    stats = {
        name.replace('classifier.norm', 'norm'): value
        for name, value in stats.items()
    }
    assert_start_values(parameters, stats)


# ------------------------------------------------- official checkpoints


def official_names(state):
    """What :func:`convert_vmamba_state_dict` undoes, latest names."""
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix('backbone.')
        if key.startswith('norm.'):
            key = f'classifier.{key}'
        key = key.replace('head.fc.', 'classifier.head.')
        renamed[key] = value
    return renamed


def old_names(state):
    """Those of the first release."""
    renamed = {}
    for key, value in official_names(state).items():
        for new, old in (
            ('patch_embed.0.', 'patch_embed.proj.'),
            ('patch_embed.2.', 'patch_embed.norm.'),
            ('.op.', '.self_attention.'),
            ('classifier.norm.', 'norm.'),
            ('classifier.head.', 'head.'),
        ):
            key = key.replace(new, old)
        if key.startswith('layers') and '.blocks.' in key:
            key = key.replace('.norm.', '.ln_1.')
        renamed[key] = value
    return renamed


def convolutional(state):
    """1x1 convolutions for Linears."""
    linear = ('in_proj.weight', 'out_proj.weight', 'fc1.weight', 'fc2.weight')
    linear += ('reduction.weight', 'classifier.head.weight')
    return {
        key: value[..., None, None] if key.endswith(linear) else value
        for key, value in official_names(state).items()
    }


def grouped(state):
    """The one-file version: grouped convolutions, numbered merging."""
    renamed = {}
    for key, value in official_names(state).items():
        key = key.replace('downsample.norm.', 'downsample.1.')
        key = key.replace('downsample.reduction.', 'downsample.2.')
        if key.endswith(('x_proj_weight', 'dt_projs_weight')):
            key = key.removesuffix('_weight') + '.weight'
            value = value.flatten(0, 1).unsqueeze(-1)
        renamed[key] = value
    return renamed


@pytest.mark.parametrize(
    'names', [official_names, old_names, convolutional, grouped]
)
@pytest.mark.parametrize('kind', ['v2', 'vanilla'])
def test_names_of_all_releases_are_converted(names, kind):
    options = {**VARIANTS[kind], 'pos_embed': False}
    state = build(tiny_student(**options)).state_dict()
    given = names(state)
    assert (given.keys() != state.keys()) and len(given) == len(state)
    result = convert_vmamba_state_dict(given)
    assert list(result) == list(state)
    for key, value in state.items():
        assert result[key].equal(value), key


def test_converts_position_embeddings_and_detection_backbones():
    net = backbone(
        variant=dict(pos_embed=True), img_size=(8, 12), out_indices=(0, 1, 2)
    )
    state = net.state_dict()
    given = dict(state, pos_embed=state['pos_embed'].mT.unflatten(2, (2, 3)))
    given['outnorm2.weight'] = given.pop('norm.weight')
    given['outnorm2.bias'] = given.pop('norm.bias')
    result = convert_vmamba_state_dict(given)
    assert set(result) == {f'backbone.{key}' for key in state}
    for key, value in state.items():
        assert result[f'backbone.{key}'].equal(value), key


def test_official_file_as_a_pretrained_backbone(tmp_path):
    """The averaged weights are taken; other scans are refused."""
    path = str(tmp_path / 'vssm_tiny.pth')
    arch = small_arch(depths=(1, 2), dims=6)
    files = [build(tiny_student(), seed=s).state_dict() for s in (1, 2)]
    model, ema = map(official_names, files)
    torch.save(dict(model=model, model_ema=ema), path)
    start = dict(type='Pretrained', checkpoint=path)
    net = VMamba(arch, out_indices=(0, 1), init_cfg=start)
    net.init_weights()  # the norm of the first stage stays fresh
    for key, value in net.state_dict().items():
        if not key.startswith('outnorm'):
            assert value.equal(files[1][f'backbone.{key}']), key
    for kwargs in (
        dict(arch=arch, directions=VMamba.DIRECTIONS['v052d']),
        dict(arch=dict(arch, out_act=True)),
        dict(arch=dict(arch, act='relu')),
    ):
        other = VMamba(**kwargs, init_cfg=start)
        with pytest.raises(ValueError, match='to another model than this'):
            other.init_weights()
    with pytest.raises(ValueError, match='does not fit VMamba'):
        VMamba(small_arch(dims=6), init_cfg=start).init_weights()


def test_forward_types_of_the_original():
    parse = parse_forward_type
    options, directions = parse('v05_noz')
    assert options == dict(
        gated=False, gate_act=True, out_act=False, out_norm=True
    )
    assert directions == VMamba.DIRECTIONS['cross']
    options, directions = parse('v052d_onnone_oact_nozact_no32')
    assert options == dict(
        gated=True, gate_act=False, out_act=True, out_norm=False
    )
    assert directions == VMamba.DIRECTIONS['v052d']
    assert parse('v3_ondwconv3_noz')[0]['out_norm'] == 'dwconv3'
    assert parse('v04_oncnorm_nozact_oact')[0]['out_norm'] == 'cnorm'
    for name in ('v052dc_noz', 'xv1a', 'm0_noz', 'v05_onsoftmax'):
        with pytest.raises(NotImplementedError, match=f"'{name}'"):
            parse(name)


# -------------------------------------------------------------- outputs


@every_variant
def test_forward_is_stem_stages_and_norm(variant):
    """Written down from the parts, on maps, on another grid than trained."""
    net = backbone(variant=variant, out_type='raw', out_indices=(0, 1, 2))
    x = images(36, 52)
    tokens, grid = net.patch_embed(x)
    assert grid == (9, 13)
    if net.pos_embed is not None:
        pos = F.interpolate(
            net.pos_embed.mT.unflatten(2, (8, 8)), size=grid, mode='bicubic'
        )
        tokens = tokens + pos.flatten(2).mT
    for i, (out, stage) in enumerate(zip(net(x), net.layers)):
        for block in stage.blocks:
            tokens = tokens + block.op(block.norm(tokens), grid)
            if block.mlp is not None:
                tokens = tokens + block.mlp(block.norm2(tokens))
        norm = net.norm if i == 2 else getattr(net, f'outnorm{i}')
        torch.testing.assert_close(out, norm(tokens), **CLOSE)
        tokens, grid = stage.downsample(tokens, grid)
    expected = (2, 3) if variant == VARIANTS['rounds_down'] else (3, 4)
    assert grid == expected


def test_stems():
    x = images(19, 30)
    net = backbone(variant=dict(patch_embed='v1'))
    tokens, grid = net.patch_embed(x)
    conv, norm = net.patch_embed
    expected = norm.bias + norm.weight * F.layer_norm(
        conv(x).permute(0, 2, 3, 1), (8,)
    )
    assert grid == (4, 7)
    torch.testing.assert_close(tokens, expected.flatten(1, 2), **CLOSE)
    net = backbone()
    assert backbone(img_size=(19, 30)).patch_embed.init_out_size == (5, 8)
    assert net.patch_embed(x)[1] == (5, 8)
    assert list(net.patch_embed._modules) == ['0', '2', '4', '5', '7']


@pytest.mark.parametrize('grid', [(4, 6), (3, 5), (1, 1), (1, 4)])
def test_downsampling(grid):
    x = torch.randn(2, grid[0] * grid[1], 3)
    maps = x.mT.unflatten(2, grid)
    half = tuple(-(-side // 2) for side in grid)
    conv = ConvDownsample(3, 7, 3)
    out, got = conv(x, grid)
    expected = conv[0](maps).permute(0, 2, 3, 1)
    expected = F.layer_norm(expected, (7,)).flatten(1, 2)
    assert got == half
    torch.testing.assert_close(out, expected, **CLOSE)
    merge = MergeDownsample(3, 7)
    out, got = merge(x, grid)
    assert got == half
    corners = []
    for row, col in ((0, 0), (1, 0), (0, 1), (1, 1)):
        padded = torch.zeros(2, 3, 2 * half[0], 2 * half[1])
        padded[..., : grid[0], : grid[1]] = maps
        corners.append(padded[:, :, row::2, col::2])
    joined = torch.cat(corners, 1).flatten(2).mT
    expected = merge.reduction(F.layer_norm(joined, (12,)))
    torch.testing.assert_close(out, expected, **CLOSE)
    even = ConvDownsample(3, 7, 2)
    if min(grid) == 1:
        with pytest.raises(ValueError, match=r"halved by downsample='v2'"):
            even(x, grid)
    else:
        assert even(x, grid)[1] == (grid[0] // 2, grid[1] // 2)
    same, got = NoDownsample()(x, grid)
    assert same is x and got == grid


def test_mlps():
    x = torch.randn(2, 5, 4)
    mlp = VMambaMlp(4, 6, False, 'gelu', 0.0)
    expected = mlp.fc2(F.gelu(mlp.fc1(x)))
    torch.testing.assert_close(mlp(x), expected, **CLOSE)
    mlp = VMambaMlp(4, 6, True, 'relu', 0.0)
    value, gate = mlp.fc1(x).split(6, -1)
    torch.testing.assert_close(mlp(x), mlp.fc2(value * gate.relu()), **CLOSE)
    mlp = VMambaMlp(4, 6, False, 'sigmoid', 0.0)
    expected = mlp.fc2(mlp.fc1(x).sigmoid())
    torch.testing.assert_close(mlp(x), expected, **CLOSE)


@pytest.mark.parametrize(('gated', 'times'), [(False, 2), (True, 1)])
def test_dropout_of_mlps(gated, times):
    """A gated one drops its output only."""
    mlp, dropped = VMambaMlp(4, 6, gated, 'gelu', 0.5), []
    mlp.drop.register_forward_hook(lambda m, i, out: dropped.append(out))
    out = mlp(torch.randn(2, 5, 4))
    assert len(dropped) == times
    assert dropped[-1] is out


@every_variant
@pytest.mark.parametrize('size', [(32, 32), (37, 50), (16, 61)])
def test_maps_of_all_stages_and_a_gradient_for_every_parameter(variant, size):
    net = backbone(
        variant=variant,
        out_type='featmap',
        out_indices=(0, 1, 2),
        eval_mode=False,
    )
    outs = net(images(*size))
    grid = net.patch_embed._out_size(size)
    for i, out in enumerate(outs):
        assert out.shape == (2, 8 * 2**i, *grid)
        up = 0 if variant == VARIANTS['rounds_down'] else 1
        grid = tuple((side + up) // 2 for side in grid)
    # Not the squares: the norm keeps their sum nearly constant.
    sum(out.pow(3).sum() for out in outs).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_out_types_show_the_same_tokens():
    x = images(20, 30)
    shown = {t: backbone(out_type=t)(x)[0] for t in VMamba.OUT_TYPES}
    assert shown['raw'].shape == (2, 4, 32)
    assert shown['featmap'].shape == (2, 32, 2, 2)
    assert shown['featmap'].flatten(2).mT.equal(shown['raw'])
    mean = shown['raw'].mean(1)
    torch.testing.assert_close(shown['avg_featmap'], mean, **CLOSE)


def test_norms_of_the_outputs():
    net = backbone(out_indices=(0, -1))
    assert net.out_indices == (0, 2)
    norms = [n for n, _ in net.named_children() if 'norm' in n]
    assert norms == ['norm', 'outnorm0']
    assert all(getattr(net, name).eps == 1e-5 for name in norms)
    bare = backbone(final_norm=False, out_type='raw')
    seen = []
    bare.layers[2].blocks[-1].register_forward_hook(
        lambda m, i, out: seen.append(out)
    )
    assert bare(images(32, 32))[0].equal(seen[0])


def test_widths_may_be_given_for_each_stage():
    arch = small_arch(dims=(8, 8, 8), downsample='none')
    net = backbone(arch=arch, out_type='featmap')
    assert net.layer_dims == (8,) * 4
    assert net(images(24, 32))[0].shape == (2, 8, 6, 8)
    net = backbone(arch=small_arch(dims=[8, 12, 20]), out_type='featmap')
    assert net.layer_dims == (8, 12, 12, 20)
    assert net(images(24, 32))[0].shape == (2, 20, 2, 2)


@pytest.mark.parametrize('target', [16, (16, 24)])
def test_loading_resizes_the_position_embedding(target):
    source = backbone(variant=dict(pos_embed=True), seed=1)
    net = backbone(variant=dict(pos_embed=True), img_size=target)
    net.load_state_dict(source.state_dict())
    expected = F.interpolate(
        source.pos_embed.mT.unflatten(2, (8, 8)),
        size=net.patch_embed.init_out_size,
        mode='bicubic',
    )
    assert net.pos_embed.equal(expected.flatten(2).mT)


# ----------------------------------------------------- training behaviour


def test_drop_path_grows_over_all_blocks_and_acts_in_training_only():
    x = images(32, 32, batch=8)
    plain = backbone(out_type='raw')
    for kwargs in (dict(drop_path_rate=0.9), dict(drop_rate=0.5)):
        net = backbone(out_type='raw', **kwargs)
        assert net(x)[0].equal(plain(x)[0])
        assert not net.train()(x)[0].equal(plain(x)[0])
    net = backbone(drop_path_rate=0.9)
    rates = [block.drop_path.drop_prob for block in net.blocks()]
    assert rates == pytest.approx([0.0, 0.3, 0.6, 0.9])


@pytest.mark.parametrize('tapped', [False, True])
def test_checkpointed_blocks_have_the_same_gradients(tapped):
    x = images(28, 36)
    grads = []
    for with_cp in (False, True):
        net = backbone(with_cp=with_cp, out_type='raw', eval_mode=False)
        recorder = DirectionTapsRecorder()
        recorder.initialize(net)
        if tapped:
            with recorder:
                (out,) = net(x)
            records = recorder.get_record_data()
            loss = sum(r.tokens.pow(3).sum() for r in records)
        else:
            (out,), loss = net(x), 0.0
        (loss + out.pow(3).sum()).backward()
        grads.append({k: p.grad for k, p in net.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, **CLOSE)


@pytest.mark.parametrize('stages', [-1, 0, 1, 3])
def test_frozen_stages(stages):
    net = backbone(
        variant=dict(pos_embed=True), frozen_stages=stages, out_type='raw'
    )
    assert net.train() is net
    frozen = []
    if stages >= 0:
        frozen = ['pos_embed', 'patch_embed.']
        frozen += [f'layers.{i}.' for i in range(stages)]
    frozen += ['norm.'] if stages == 3 else []
    for name, parameter in net.named_parameters():
        expected = not name.startswith(tuple(frozen))
        assert parameter.requires_grad == expected, name
    for i, stage in enumerate(net.layers):
        assert stage.training == (i >= stages)
        assert all(b.training == (i >= stages) for b in stage.blocks)
    (out,) = net(images(32, 32))
    if stages < 3:
        out.pow(3).sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_layer_depth_for_layerwise_learning_rates():
    net = backbone(variant=dict(pos_embed=True), out_indices=(0, 2))
    depths = {
        'pos_embed': 0,
        'patch_embed.5.weight': 0,
        'layers.0.blocks.0.norm.weight': 1,
        'layers.0.downsample.1.weight': 1,
        'layers.1.blocks.0.op.A_logs': 2,
        'layers.1.blocks.1.op.A_logs': 3,
        'layers.1.downsample.3.bias': 3,
        'layers.2.blocks.0.mlp.fc1.bias': 4,
        'norm.weight': 5,
        'outnorm0.weight': 5,
    }
    for name, depth in depths.items():
        assert name in dict(net.named_parameters())
        assert net.get_layer_depth(name) == (depth, 6)
        prefixed = net.get_layer_depth(f'backbone.{name}', 'backbone.')
        assert prefixed == (depth, 6)
    assert net.get_layer_depth('head.fc.weight', 'backbone.') == (5, 6)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='huge'), "unknown VMamba arch 'huge'"),
        (dict(arch=dict(embed_dims=8)), 'needs the keys'),
        (dict(arch=small_arch(expand=2)), "got .*'expand'"),
        (dict(arch=small_arch(patch_embed='v3')), "'v1' or 'v2', got 'v3'"),
        (dict(arch=small_arch(downsample='v4')), "'none', got 'v4'"),
        (
            dict(arch=small_arch(downsample='none')),
            'stages of 8 and 16 channels',
        ),
        (dict(arch=small_arch(dims=(8, 16))), 'each of the 3 stages'),
        (dict(arch=small_arch(depths=(1, 0))), 'at least one block'),
        (dict(patch_size=3), 'must be even and at least 4, got 3'),
        (dict(img_size=(16, 0)), 'image of 16x0 is smaller than a patch'),
        (dict(out_type='cls_token'), "no out_type 'cls_token'"),
        (dict(out_indices=3), 'out_indices holds 3, but VMamba has 3 stages'),
        (dict(directions=('raster',) * 2), 'each once'),
        (dict(arch=small_arch(act='tanh')), "unknown activation 'tanh'"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        backbone(**kwargs)


def test_images_that_are_too_small_are_named():
    with pytest.raises(ValueError, match='an image of 3x9 is smaller'):
        backbone(variant=dict(patch_embed='v1'))(images(3, 9))
    # The released stem pads, so one pixel is enough for all stages.
    assert backbone(out_type='featmap')(images(1, 1))[0].shape[2:] == (1, 1)


# ------------------------------------------------- transfer and distill


def test_layer_dims_directions_and_blocks():
    net = backbone(variant=dict(), directions=VMamba.DIRECTIONS['v052d'])
    assert net.hierarchical
    assert net.layer_dims == (8, 16, 16, 32)
    assert (net.num_layers, net.num_outputs) == (4, 3)
    assert net.directions == VMamba.DIRECTIONS['v052d']
    assert [tuple(t.out) for t in net.taps()] == [net.directions] * 4
    recorder = DirectionTapsRecorder('residual')
    recorder.initialize(net)
    streams = []
    for block in net.blocks():
        block.register_forward_pre_hook(
            lambda m, args: streams.append((args[0].shape, args[1]))
        )
    with recorder:
        net(images(36, 28))
    grids = [(9, 7), (5, 4), (5, 4), (3, 2)]
    for (shape, given), grid, dims in zip(streams, grids, net.layer_dims):
        assert (shape, given) == ((2, grid[0] * grid[1], dims), grid)
    records = recorder.get_record_data()
    assert [r.grid for r in records[::4]] == grids
    assert [r.layer for r in records[::4]] == [0, 1, 2, 3]


def test_roles_count_blocks_over_all_stages():
    net = backbone(variant=dict(VARIANTS['vanilla'], mlp_ratio=2.0))
    roles = net.param_roles()
    without = {n for n, _ in net.named_parameters() if n not in roles}
    assert without == {
        'patch_embed.2.weight',
        'patch_embed.2.bias',
        *(
            f'layers.{s}.downsample.{leaf}'
            for s in (0, 1)
            for leaf in ('reduction.weight', 'norm.weight', 'norm.bias')
        ),
    }
    assert roles['patch_embed.0.weight'] == 'patch_embed.weight'
    assert roles['norm.bias'] == 'final_norm.bias'
    second = {
        name.removeprefix('layers.1.blocks.1.'): role
        for name, role in roles.items()
        if name.startswith('layers.1.blocks.1.')
    }
    assert second == {
        'norm.weight': 'layers.2.mixer_norm.weight',
        'norm.bias': 'layers.2.mixer_norm.bias',
        'norm2.weight': 'layers.2.ffn_norm.weight',
        'norm2.bias': 'layers.2.ffn_norm.bias',
        'mlp.fc1.weight': 'layers.2.ffn_in.weight',
        'mlp.fc1.bias': 'layers.2.ffn_in.bias',
        'mlp.fc2.weight': 'layers.2.ffn_out.weight',
        'mlp.fc2.bias': 'layers.2.ffn_out.bias',
        'op.out_proj.weight': 'layers.2.mixer_out.weight',
        'op.in_proj.weight': 'layers.2.ssm.in_proj.weight',
        'op.conv2d.weight': 'layers.2.ssm.conv.weight',
        'op.conv2d.bias': 'layers.2.ssm.conv.bias',
        'op.x_proj_weight': 'layers.2.ssm.x_proj.weight',
        'op.dt_projs_weight': 'layers.2.ssm.dt_projs_weight',
        'op.dt_projs_bias': 'layers.2.ssm.dt_projs_bias',
        'op.A_logs': 'layers.2.ssm.A_logs',
        'op.Ds': 'layers.2.ssm.Ds',
        'op.out_norm.weight': 'layers.2.ssm.out_norm.weight',
        'op.out_norm.bias': 'layers.2.ssm.out_norm.bias',
    }
    # Two overlapping convolutions are no patch embedding of a ViT.
    assert not any('patch_embed' in r for r in backbone().param_roles())


def test_subclones_a_vit():
    """As many channels in the last stage, a part of them before."""
    teacher = build(vit_cfg(dims=16, depth=3), seed=1)
    student = build(tiny_student(dims=8, patch_embed='v1', pos_embed=True))
    plan, entries = plan_from(teacher, student)
    plan.apply(student)
    ours, theirs = student.backbone, teacher.backbone
    last = ours.layers[1].blocks[1]
    for name, own, other in (
        ('norm.weight', ours.norm.weight, theirs.ln1.weight),
        (
            'layers.1.blocks.1.op.out_proj.weight',
            last.op.out_proj.weight,
            theirs.layers[2].attn.proj.weight,
        ),
    ):
        assert entries[name].rule == 'copy'
        assert own.equal(other)
    for name in ('patch_embed.0.weight', 'layers.0.blocks.0.norm.weight'):
        assert entries[name].rule == 'select'
    assert entries['pos_embed'].rule in ('select', 'resize')
    assert entries['head.fc.weight'].rule == 'copy'
    assert entries['layers.0.downsample.1.weight'].rule == 'fresh'


def test_state_space_from_attention_and_from_a_pretrained_vmamba():
    teacher = build(vit_cfg(dims=16, depth=3), seed=1)
    student = build(tiny_student(dims=8))
    _, entries = plan_from(teacher, student, ssm=build_ssm_source('attention'))
    for name in ('x_proj_weight', 'in_proj.weight'):
        assert entries[f'layers.1.blocks.0.op.{name}'].rule == 'attention'
    pretrained = build(tiny_student(dims=8), seed=5).backbone.state_dict()
    source = build_ssm_source('vmamba.pth', pretrained, conv_init='normal')
    plan, entries = plan_from(teacher, student, ssm=source)
    for name in ('A_logs', 'Ds', 'dt_projs_bias', 'out_norm.weight'):
        assert entries[f'layers.1.blocks.1.op.{name}'].rule == 'ssm'
    assert entries['layers.0.blocks.0.op.conv2d.weight'].rule == 'init'
    plan.apply(student)
    assert (
        student.backbone.layers[1]
        .blocks[1]
        .op.A_logs.equal(pretrained['layers.1.blocks.1.op.A_logs'])
    )


def test_one_step_of_distillation(tmp_path):
    """Of students whose grids are not the teacher's."""
    assert_distillation_learns(tiny_student(gated=True), tmp_path)


def test_compiled_equals_eager():
    net = backbone(out_type='raw')
    x = images(20, 28)
    expected = net(x)[0]
    torch._dynamo.reset()
    out = torch.compile(net, backend='eager', fullgraph=True)(x)[0]
    torch._dynamo.reset()
    torch.testing.assert_close(out, expected, **CLOSE)


def test_modules_are_found_by_the_initialisers():
    """The subclasses of Linear and LayerNorm are not overlooked."""
    net = VMamba(small_arch())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7.0)
    net.init_weights()
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
        if isinstance(module, nn.Linear):
            assert 0.015 < module.weight.std() < 0.025
