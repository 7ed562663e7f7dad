# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints of VMamba: the names of all releases, other sizes."""

import json

import pytest
import torch
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

from transmamba_mm.checkpoints import NOTE, CheckpointError
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
    state = build(tiny_student(**VARIANTS[kind])).state_dict()
    given = names(state)
    assert (given.keys() != state.keys()) and len(given) == len(state)
    result = VMAMBA.to_classifier(given)
    assert list(result) == list(state)
    for key, value in state.items():
        assert result[key].equal(value), key


def test_converts_detection_backbones():
    state = backbone(out_indices=(0, 1, 2)).state_dict()
    given = dict(state)
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
    scans = VMamba.DIRECTIONS['v052d']
    with pytest.raises(ValueError, match='to another model than this'):
        VMamba(arch, directions=scans, init_cfg=start).init_weights()
    with pytest.raises(ValueError, match='does not fit VMamba'):
        VMamba(small_arch(dims=6), init_cfg=start).init_weights()


def test_forward_types_of_the_original():
    parse = parse_forward_type
    assert parse('v05_noz') == (False, VMamba.DIRECTIONS['cross'])
    assert parse('v052d_no32') == (True, VMamba.DIRECTIONS['v052d'])
    for name in ('v052dc_noz', 'xv1a', 'm0_noz', 'v05_onnone'):
        with pytest.raises(NotImplementedError, match=f"'{name}'"):
            parse(name)


def test_notes_tell_of_settings_that_are_gone():
    """Loaded as long as they were what they always are now."""
    source, net = backbone(seed=1), backbone()
    state = source.state_dict()
    note = state._metadata[''][NOTE]
    assert (note['act'], note['gate_act']) == ('silu', True)
    net.load_state_dict(state)
    assert net.norm.weight.equal(source.norm.weight)
    note['act'] = 'relu'
    with pytest.raises(CheckpointError, match="act is 'relu' there and 'silu"):
        net.load_state_dict(state)
