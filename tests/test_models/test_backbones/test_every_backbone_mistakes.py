# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What every registered backbone refuses, and how it says so.

Each mistake must give one ValueError with the setting, what it may be and
what it was.
"""

import copy

import numpy as np
import pytest
import torch
from every_backbone_cases import build, every_backbone, inputs


def with_arch(kwargs, **more):
    kwargs = copy.deepcopy(kwargs)
    kwargs['arch'].update(more)
    return kwargs


def with_mixer(name, kwargs, **more):
    if name == 'VMamba':
        return with_arch(kwargs, **more)
    kwargs = copy.deepcopy(kwargs)
    kwargs['mixer_cfg'] = {**kwargs.get('mixer_cfg', {}), **more}
    return kwargs


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(frozen_stages='1'), "frozen_stages must be an integer, got '1'"),
        (dict(frozen_stages=True), 'frozen_stages must be an integer'),
        (dict(frozen_stages=-2), 'frozen_stages must be at least -1, got -2'),
        (dict(drop_path_rate='0.1'), 'drop_path_rate must be a number, got'),
        (dict(drop_rate='0.1'), 'drop_rate must be a number, got'),
        (dict(drop_rate=1.5), r'drop_rate must be in 0\.\.1, got 1.5'),
        (dict(out_indices=(True,)), r'out_indices must be .* got \(True,\)'),
        (dict(out_indices=True), 'out_indices must be .* got True'),
        (dict(img_size='32'), r"img_size must be \(H, W\), or .* got '32'"),
        (dict(img_size=32.0), r'img_size must be \(H, W\), or .* got 32\.0'),
        (dict(img_size=(32,)), r'img_size must be \(H, W\), or .* \(32,\)'),
        (dict(img_size=(4, 4, 4)), r'img_size must be \(H, W\), or'),
        (dict(img_size=0), 'img_size must be at least 1, got 0'),
        (dict(img_size=(16, -32)), r'img_size must be at least 1, got \(16,'),
        (dict(patch_size=0), 'patch_size must be at least 1, got 0'),
        (dict(patch_size=-4), 'patch_size must be at least 1, got -4'),
        (dict(patch_size='4'), "patch_size must be .* got '4'"),
        (dict(in_channels=0), 'in_channels must be at least 1, got 0'),
        (dict(in_channels=3.0), r'in_channels must be an integer, got 3\.0'),
        (dict(arch=['tiny']), r"unknown \w+ arch \['tiny'\]; choose from"),
    ],
)
@every_backbone
def test_settings(name, kwargs, wrong, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        build(name, {**kwargs, **wrong})


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (0, 'must be at least 1, got 0'),
        (-8, 'must be at least 1, got -8'),
        ('3', "must be an integer, got '3'"),
        (3.0, r'must be an integer, got 3\.0'),
        (True, 'must be an integer, got True'),
    ],
)
@pytest.mark.parametrize('key', ['embed_dims', 'num_layers'])
@every_backbone
def test_sizes_of_the_arch(name, kwargs, key, value, message):
    if name == 'VMamba' and key == 'num_layers':
        pytest.skip('its layers are counted by depths')
    with pytest.raises(ValueError, match=f'^{key} {message}'):
        build(name, with_arch(kwargs, **{key: value}))


@pytest.mark.parametrize('ratio', [-1, '2', 1e-3, float('nan'), True])
@every_backbone
def test_ratios_of_widths(name, kwargs, ratio):
    key = 'ssm_ratio' if name == 'VMamba' else 'expand'
    with pytest.raises(ValueError, match=f'{key}.* leaves a channel.* got'):
        build(name, with_mixer(name, kwargs, **{key: ratio}))
    key = 'mlp_ratio' if name == 'VMamba' else 'ffn_ratio'
    wrong = {key: ratio}
    kwargs = (
        {**kwargs, **wrong}
        if name == 'PlainMamba'
        else with_arch(kwargs, **wrong)
    )
    with pytest.raises(ValueError, match=f'{key} .*a channel.* 0.* got'):
        build(name, kwargs)


@pytest.mark.parametrize('size', [-1, '3', 3.0])
@every_backbone
def test_size_of_the_convolution(name, kwargs, size):
    if name == 'VMamba':
        pytest.skip('its convolutions are 3x3')
    key = 'd_conv' if name in ('VisionMamba', 'VideoMamba') else 'conv_size'
    with pytest.raises(ValueError, match=f'^{key} must be .* got {size!r}'):
        build(name, with_mixer(name, kwargs, **{key: size}))


@every_backbone
def test_integers_may_be_numpys(name, kwargs):
    dims = kwargs['arch']['embed_dims']
    net = build(
        name,
        with_arch(kwargs, embed_dims=np.int64(dims)),
        img_size=np.int64(16),
        frozen_stages=np.int64(1),
        out_indices=(np.int64(0),),
    )
    assert type(net.layer_dims[0]) is int
    assert type(net.frozen_stages) is int
    (out,) = net(inputs(kwargs))
    assert out.isfinite().all()


@pytest.mark.parametrize(
    'change', [lambda x: x[..., :0, :], lambda x: x[..., :, :0]]
)
@every_backbone
def test_empty_images(name, kwargs, change):
    x = change(inputs(kwargs))
    message = r'at least one pixel, got|smaller than a patch'
    with pytest.raises(ValueError, match=message):
        build(name, kwargs)(x)


@pytest.mark.parametrize(
    'kind', ['BN', 'BN1d', 'SyncBN', 'GN', 'IN1d', 'LN2d']
)
@every_backbone
def test_norms_of_maps(name, kwargs, kind):
    if name == 'VMamba':
        pytest.skip('it has no norm_cfg')
    cfg = dict(type=kind)
    if kind == 'GN':
        cfg['num_groups'] = 2
    with pytest.raises(ValueError, match=f'norm_cfg must .*{kind}.* use dict'):
        build(name, kwargs, norm_cfg=cfg)


@pytest.mark.parametrize(
    ('directions', 'message'),
    [
        ('raster', r"the string 'raster': write \('raster',\)"),
        (5, 'directions must be a tuple of at least one scan order.* got 5'),
        ((1,), r'directions must be a tuple .* got \(1,\)'),
    ],
)
@pytest.mark.parametrize('name', ['PlainMamba', 'VMamba'])
def test_directions(name, directions, message):
    with pytest.raises(ValueError, match=message):
        build(name, {}, directions=directions)


@pytest.mark.parametrize('name', ['VisionMamba', 'VideoMamba'])
@pytest.mark.parametrize('stride', [6, (4, 6)])
def test_a_stride_that_skips_pixels_is_warned_of(name, stride, monkeypatch):
    said = []
    monkeypatch.setattr(
        'transmamba_mm.models.layers.patch_embed.print_log',
        lambda message, **kwargs: said.append((message, kwargs['level'])),
    )
    kwargs = dict(
        arch=dict(embed_dims=16, num_layers=1), img_size=16, patch_size=4
    )
    build(name, kwargs, stride=4)
    assert not said
    net = build(name, kwargs, stride=stride)
    ((message, level),) = said
    assert 'is larger than patch_size (4, 4)' in message
    assert level == 30
    assert net(torch.randn(1, 3, 16, 16))[0].isfinite().all()
