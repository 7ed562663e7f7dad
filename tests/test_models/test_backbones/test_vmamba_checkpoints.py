# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints of VMamba: the names of all releases, other sizes."""

import json

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import GOLDEN
from golden_vmamba import parse_forward_type
from helpers import build
from mmpretrain.registry import MODELS
from vmamba_cases import (
    DEPTHS,
    VARIANTS,
    backbone,
    classifier,
    small_arch,
    tiny_student,
)

from transmamba_mm.checkpoints.formats import VMAMBA
from transmamba_mm.models import VMamba


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
    converted = VMAMBA.to_classifier(official)
    assert {key: value.shape for key, value in converted.items()} == own


def official_names(state):
    """What ``VMAMBA.to_classifier`` undoes, latest names."""
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
    result = VMAMBA.to_classifier(given)
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
    result = VMAMBA.to_classifier(given)
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
