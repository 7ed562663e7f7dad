# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Reading a teacher: which tensor plays which role."""

import re

import pytest
import torch
from helpers import build, pmamba_cfg, vit_cfg

from transmamba_mm.contract import (
    FAMILIES,
    TeacherError,
    TeacherFamily,
    read_teacher,
)
from transmamba_mm.contract.roles import in_group, is_ssm, split_role

LAYER_ROLES = {
    f'{stem}.{leaf}'
    for stem in (
        'mixer_norm',
        'qkv',
        'mixer_out',
        'ffn_norm',
        'ffn_in',
        'ffn_out',
    )
    for leaf in ('weight', 'bias')
}

TIMM_NAMES = (
    (r'^backbone\.patch_embed\.projection', 'patch_embed.proj'),
    (r'^backbone\.layers', 'blocks'),
    (r'^backbone\.ln1', 'norm'),
    (r'^backbone\.', ''),
    (r'\.ln1\.', '.norm1.'),
    (r'\.ln2\.', '.norm2.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'^head\.layers\.head', 'head'),
)


def timm_state(state):
    """An mmpretrain ViT's state dict under timm's names."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in TIMM_NAMES:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    assert 'blocks.1.mlp.fc2.bias' in renamed
    assert 'norm.weight' in renamed
    return renamed


@pytest.fixture(scope='module')
def state():
    return build(vit_cfg(depth=3)).state_dict()


def test_every_tensor_of_a_vit_has_a_role(state):
    teacher = read_teacher(state)
    assert teacher.family == 'mmpretrain VisionTransformer'
    assert sorted(teacher.names.values()) == sorted(state)
    layers = [f'layers.{i}.{r}' for i in range(3) for r in LAYER_ROLES]
    top = {'pos_embed', 'cls_token'}
    for stem in ('patch_embed', 'final_norm', 'head'):
        top |= {f'{stem}.weight', f'{stem}.bias'}
    assert set(teacher.tensors) == top | set(layers)
    for role, key in {
        'layers.2.mixer_norm.bias': 'backbone.layers.2.ln1.bias',
        'layers.0.ffn_norm.weight': 'backbone.layers.0.ln2.weight',
        'layers.1.mixer_out.weight': 'backbone.layers.1.attn.proj.weight',
        'layers.1.ffn_in.weight': 'backbone.layers.1.ffn.layers.0.0.weight',
        'layers.1.ffn_out.weight': 'backbone.layers.1.ffn.layers.1.weight',
        'final_norm.weight': 'backbone.ln1.weight',
        'head.weight': 'head.layers.head.weight',
    }.items():
        assert teacher.names[role] == key
        assert teacher.tensors[role].equal(state[key])
    assert teacher.num_layers == 3
    assert teacher.embed_dims == 16
    assert teacher.num_extra_tokens == 1
    assert teacher.grid == (4, 4)


def test_timm_names_give_the_same_roles(state):
    ours, timm = read_teacher(state), read_teacher(timm_state(state))
    assert timm.family == 'timm VisionTransformer'
    assert timm.tensors.keys() == ours.tensors.keys()
    for role, value in ours.tensors.items():
        assert timm.tensors[role].equal(value), role
    assert timm.num_extra_tokens == 1


@pytest.mark.parametrize('prefix', ['teacher.', 'model.', 'a.b.'])
@pytest.mark.parametrize('rename', [dict, timm_state])
def test_any_prefix(state, rename, prefix):
    bare = read_teacher(rename(state))
    prefixed = {prefix + k: v for k, v in rename(state).items()}
    prefixed['other.weight'] = torch.zeros(2)
    teacher = read_teacher(prefixed)
    assert teacher.names == {r: prefix + k for r, k in bare.names.items()}


def test_a_bare_backbone_has_no_head(state):
    bare = {
        k.removeprefix('backbone.'): v
        for k, v in state.items()
        if k.startswith('backbone.')
    }
    teacher = read_teacher(bare)
    roles = set(read_teacher(state).tensors)
    assert roles - set(teacher.tensors) == {'head.weight', 'head.bias'}


def test_distilled_deit_has_two_extra_tokens():
    config = vit_cfg()
    config['backbone']['type'] = 'DistilledVisionTransformer'
    config['head']['type'] = 'DeiTClsHead'
    teacher = read_teacher(build(config).state_dict())
    assert teacher.tensors['pos_embed'].shape[1] == 18
    assert teacher.num_extra_tokens == 2
    assert teacher.grid == (4, 4)
    assert teacher.names['head.weight'] == 'head.layers.head.weight'


def test_layer_scale_under_timm_names(state):
    teacher = read_teacher(timm_state(state))
    scaled = timm_state(state)
    scaled['blocks.1.ls1.gamma'] = torch.full((16,), 2.0)
    scaled['blocks.2.ls2.gamma'] = torch.arange(16.0)
    scaled = read_teacher(scaled)
    assert scaled.tensors.keys() == teacher.tensors.keys()
    assert scaled.names == teacher.names
    factors = {
        'layers.1.mixer_out.weight': 2.0,
        'layers.1.mixer_out.bias': 2.0,
        'layers.2.ffn_out.weight': torch.arange(16.0)[:, None],
        'layers.2.ffn_out.bias': torch.arange(16.0),
    }
    for role, value in teacher.tensors.items():
        expected = value * factors.get(role, 1.0)
        torch.testing.assert_close(scaled.tensors[role], expected)
    assert scaled.num_extra_tokens == 1


def test_a_grid_that_is_no_square_is_named():
    teacher = read_teacher(dict(build(vit_cfg(img_size=(8, 24))).state_dict()))
    with pytest.raises(TeacherError, match='12 patch positions'):
        _ = teacher.grid


def test_an_unknown_model_is_refused_with_its_names():
    student = build(pmamba_cfg())
    with pytest.raises(TeacherError, match='no known Transformer') as error:
        read_teacher(student.state_dict())
    assert 'backbone.pos_embed' in str(error.value)
    assert 'layers.0.attn.qkv.weight' in str(error.value)
    with pytest.raises(TeacherError):
        read_teacher({})


def test_a_family_is_added_by_data_alone(monkeypatch):
    mine = TeacherFamily(
        name='mine',
        layers='enc.{}',
        signature='att.weight',
        outer={},
        inner={'n': 'mixer_norm'},
        head=('cls',),
    )
    monkeypatch.setitem(FAMILIES, 'mine', mine)
    state = {
        'x.enc.0.att.weight': torch.zeros(3, 3),
        'x.enc.0.n.weight': torch.zeros(5),
        'x.cls.weight': torch.zeros(2, 5),
    }
    teacher = read_teacher(state)
    assert teacher.family == 'mine'
    assert teacher.embed_dims == 5
    assert set(teacher.tensors) == {
        'layers.0.mixer_norm.weight',
        'head.weight',
    }


def test_roles_are_taken_apart():
    assert split_role('layers.12.ffn_in.weight') == (12, 'ffn_in.weight')
    assert split_role('pos_embed') == (None, 'pos_embed')
    assert is_ssm('layers.0.ssm.A_log')
    assert not is_ssm('layers.0.mixer_out.weight')


@pytest.mark.parametrize(
    ('group', 'wanted'),
    [
        ('all', {'ssm', 'mixer_out', 'ffn_in', 'head', 'unknown'}),
        ('mixers', {'ssm', 'mixer_out'}),
        ('head', {'head'}),
        (['mixers', 'head'], {'ssm', 'mixer_out', 'head'}),
        (['all'], {'ssm', 'mixer_out', 'ffn_in', 'head', 'unknown'}),
        (('ffn_in',), {'ffn_in'}),
        ([], set()),
    ],
)
def test_groups_of_parameters(group, wanted):
    roles = {
        'ssm': 'layers.1.ssm.A',
        'mixer_out': 'layers.0.mixer_out.weight',
        'ffn_in': 'layers.0.ffn_in.bias',
        'head': 'head.weight',
        'unknown': '',
    }
    assert {k for k, role in roles.items() if in_group(role, group)} == wanted
