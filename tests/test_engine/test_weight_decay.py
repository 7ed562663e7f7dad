# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight decay goes by the roles and shapes of parameters."""

import re

import pytest
import torch
from helpers import (
    build,
    save_teacher,
    tiny_distiller,
    tiny_student,
    tiny_teacher,
)
from mmengine.optim import build_optim_wrapper
from mmpretrain.engine.optimizers import (
    LearningRateDecayOptimWrapperConstructor,
)
from torch import nn

from transmamba_mm.engine import MergedGroupsOptimWrapperConstructor
from transmamba_mm.models import PlainMamba, VideoMamba, VisionMamba, VMamba

DEFAULT = 'DefaultOptimWrapperConstructor'
MERGED = 'transmamba.MergedGroupsOptimWrapperConstructor'
DECAY = 0.5
BY_SHAPE = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
#: What has to be said by name where the constructor knows no roles.
BY_NAME = dict(
    **BY_SHAPE,
    custom_keys={
        key: dict(decay_mult=0.0)
        for key in (
            *('.pos_embed', '.temporal_pos_embedding', '.cls_token'),
            *('.A_log', '.A_b_log', '.direction_Bs', '.dt_projs_bias'),
        )
    },
)
SMALL = dict(img_size=16, patch_size=4)


def pmamba():
    arch = dict(embed_dims=16, num_layers=2)
    return PlainMamba(arch=arch, **SMALL)


def vim(**kwargs):
    arch = dict(embed_dims=16, num_layers=2)
    return VisionMamba(arch=arch, **SMALL, **kwargs)


def vmamba():
    return VMamba(arch=dict(embed_dims=8, depths=(1, 1)))


def all_students():
    arch = dict(embed_dims=16, num_layers=2)
    video = VideoMamba(arch=arch, num_frames=4, **SMALL)
    students = dict(video=video, vim=vim(), stages=vmamba(), plain=pmamba())
    return nn.ModuleDict(students)


def distillation(tmp_path):
    return build(
        dict(
            type='transmamba.TransMambaDistill',
            architecture=tiny_student(),
            teacher=tiny_teacher(),
            teacher_ckpt=save_teacher(tmp_path / 'teacher.pth'),
            distiller=tiny_distiller(),
        )
    )


def wrapper_of(model, paramwise_cfg=None, constructor=MERGED, **optimizer):
    settings = dict(type='AdamW', lr=0.1, weight_decay=DECAY, foreach=False)
    settings.update(optimizer)
    return build_optim_wrapper(
        model,
        dict(
            optimizer={k: v for k, v in settings.items() if v is not None},
            constructor=constructor,
            paramwise_cfg=paramwise_cfg,
        ),
    )


def decays(model, *args, option='weight_decay', **kwargs):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: group[option]
        for group in wrapper_of(model, *args, **kwargs).optimizer.param_groups
        for parameter in group['params']
    }


def spared(model, pattern, **kwargs):
    """Whether just the vectors and what a pattern matches are spared."""
    for name, decay in decays(model, **kwargs).items():
        free = model.get_parameter(name).ndim == 1 or re.search(pattern, name)
        assert decay == (0 if free else DECAY), name
    return True


# ------------------------------------------------------- what is spared

OF_STUDENTS = r'(pos_embed|pos_embedding|cls_token|direction_Bs|bias)$|\.A_'


def test_all_students_of_a_model():
    model = all_students()
    assert spared(model, OF_STUDENTS)
    named = {name.rpartition('.')[2] for name in decays(model)}
    assert named >= {'A_log', 'A_b_log', 'A_logs', 'temporal_pos_embedding'}


def test_student_head_and_calibration_of_a_distillation(tmp_path):
    model = distillation(tmp_path)
    assert spared(model, OF_STUDENTS)
    decay = decays(model)
    assert decay['architecture.head.fc.weight'] == DECAY
    calibration = {k: v for k, v in decay.items() if 'calibration' in k}
    assert set(calibration.values()) == {0, DECAY}
    assert not any(name.startswith('teacher.') for name in decay)


def test_a_model_in_a_data_parallel_wrapper():
    model = build(tiny_student())
    wrapped = wrapper_of(nn.DataParallel(model)).optimizer.param_groups
    plain = wrapper_of(model).optimizer.param_groups
    assert {g['weight_decay'] for g in wrapped} == {0, DECAY}
    for ours, theirs in zip(wrapped, plain):
        assert set(ours['params']) == set(theirs['params'])


class Towers(nn.Module):
    """What is named as in CLIP, a tower of it that is no classifier."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(16))
        self.positional_embedding = nn.Parameter(torch.randn(17, 16))
        layer = nn.Module()
        layer.attn = nn.MultiheadAttention(16, 2)
        self.transformer = nn.ModuleDict(
            dict(resblocks=nn.ModuleList([layer]))
        )


@pytest.mark.parametrize(
    ('make', 'pattern'),
    [
        (lambda: build(tiny_teacher()), r'\.(pos_embed|cls_token)$'),
        (lambda: build(tiny_teacher()).backbone, r'^(pos_embed|cls_token)$'),
        (
            lambda: (
                build(tiny_teacher(type='DistilledVisionTransformer')).backbone
            ),
            r'^(pos_embed|cls_token|dist_token)$',
        ),
        (Towers, '^positional_embedding$'),
        (
            lambda: nn.ModuleList([build(tiny_teacher()), Towers(), vim()]),
            r'\.(pos_embed|cls_token|positional_embedding)$|\.A_',
        ),
    ],
    ids=['classifier', 'bare', 'distilled', 'clip', 'several'],
)
def test_positions_and_class_tokens_of_known_transformers(make, pattern):
    assert spared(make(), pattern)


def test_shapes_alone_count_in_other_models():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.register_parameter('pos_embed', nn.Parameter(torch.ones(1, 4, 4)))
    norm = nn.LayerNorm((4, 4))  # its weights are matrices
    model.append(norm)
    assert decays(model) == {
        'pos_embed': DECAY,
        '0.weight': DECAY,
        **dict.fromkeys(['0.bias', '1.weight', '1.bias'], 0),
        **dict.fromkeys(['2.weight', '2.bias'], 0),
    }


# ------------------------------------------------------------- options


def test_roles_that_decay_all_the_same():
    model = nn.ModuleList([vim(), vmamba()])
    decay = decays(model, dict(role_decay_mult=dict(A=1.0, dt_bias=0.5)))
    layer, block = '0.layers.0.mixer', '1.layers.0.blocks.0.op'
    for name in (f'{layer}.A_log', f'{layer}.A_b_log', f'{block}.A_logs'):
        assert decay[name] == DECAY
    for name in (f'{layer}.dt_proj.bias', f'{layer}.dt_proj_b.bias'):
        assert decay[name] == DECAY / 2  # a vector, but it was named
    assert decay[f'{block}.dt_projs_bias'] == DECAY / 2
    for name in ('0.pos_embed', f'{layer}.D', f'{block}.Ds'):
        assert decay[name] == 0
    assert decay[f'{layer}.conv1d.bias'] == 0


def test_with_layer_wise_learning_rates():
    class Both(
        MergedGroupsOptimWrapperConstructor,
        LearningRateDecayOptimWrapperConstructor,
    ):
        pass

    model = vim()
    assert spared(model, OF_STUDENTS, constructor=Both)
    options = dict(layer_decay_rate=0.5)
    rates = decays(model, options, constructor=Both, option='lr')
    first, second = (rates[f'layers.{i}.mixer.A_log'] for i in (0, 1))
    assert first == second / 2


@pytest.mark.parametrize('role', ['A_log', 'ssm.A'])
def test_an_unknown_role_is_refused(role):
    known = (
        'A, D, dt_bias, direction, pos_embed, temporal_pos_embed, cls_token'
    )
    match = f'role_decay_mult knows no {role}, but {known}'
    with pytest.raises(ValueError, match=match):
        wrapper_of(vim(), dict(role_decay_mult={role: 1.0, 'A': 1.0}))


def test_options_of_mmengine_come_first():
    model = vim()
    options = dict(
        bias_decay_mult=0.5,
        flat_decay_mult=2.0,
        norm_decay_mult=1.0,
        role_decay_mult=dict(A=1.0),
        custom_keys={
            '.A_b_log': dict(decay_mult=0.0),
            '.pos_embed': dict(lr_mult=0.1),
        },
    )
    decay = decays(model, options)
    mixer = 'layers.0.mixer'
    assert decay[f'{mixer}.dt_proj.bias'] == DECAY / 2
    assert decay[f'{mixer}.D'] == 2 * DECAY
    assert decay[f'{mixer}.A_log'] == DECAY
    assert decay[f'{mixer}.A_b_log'] == 0
    assert decay['cls_token'] == 0
    # A key leaves nothing to other rules, as in MMEngine.
    assert decay['pos_embed'] == DECAY
    rates = decays(model, options, option='lr')
    assert rates.pop('pos_embed') == pytest.approx(0.01)
    assert set(rates.values()) == {0.1}


def test_the_optimizers_own_decay_is_refused():
    with pytest.raises(ValueError, match=r'state .*weight_decay: the'):
        wrapper_of(vim(), weight_decay=None)
    model = vim()
    options = dict(type='SGD', weight_decay=None)  # its default is 0
    (group,) = wrapper_of(model, **options).optimizer.param_groups
    assert all(a is b for a, b in zip(group['params'], model.parameters()))


# ------------------------------------------------------- other runs go on


@pytest.mark.parametrize('make', [pmamba, vim, vmamba, all_students])
@pytest.mark.parametrize('decaying', [None, 'A'])
def test_groups_are_those_of_keys_by_name(make, decaying):
    """So that checkpoints fit whose config named every parameter."""
    model = make()
    keys = {
        key: dict(decay_mult=1.0 if decaying and '.A_' in key else mult)
        for key, options in BY_NAME['custom_keys'].items()
        for mult in options.values()
    }
    by_name = wrapper_of(model, dict(BY_SHAPE, custom_keys=keys))
    roles = {decaying: 1.0} if decaying else {}
    by_role = wrapper_of(model, dict(role_decay_mult=roles))
    assert by_role.state_dict() == by_name.state_dict()
    groups = by_role.optimizer.param_groups
    assert len(groups) == (4 if decaying else 3)
    for group, other in zip(groups, by_name.optimizer.param_groups):
        assert all(a is b for a, b in zip(group['params'], other['params']))


def test_a_run_of_the_default_constructor_goes_on_without_names():
    model = all_students()
    started = wrapper_of(model, BY_NAME, DEFAULT)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    started.step()
    wrapper = wrapper_of(model)
    wrapper.load_state_dict(started.state_dict())
    assert len(wrapper.optimizer.param_groups) == 3
    for parameter, state in started.optimizer.state.items():
        for key, value in state.items():
            assert wrapper.optimizer.state[parameter][key].equal(value)
