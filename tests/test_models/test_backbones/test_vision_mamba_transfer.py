# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Vim as a student: roles, subcloning, records and distillation."""

import pytest
import torch
from backbone_cases import CLOSE, images
from helpers import assert_distillation_learns, build, plan_from, vit_cfg
from vision_mamba_cases import CLASS_TOKENS, DIRECTIONS, backbone, tiny_student

from transmamba_mm.contract.class_tokens import split_class_tokens
from transmamba_mm.distill.recorders import DirectionTapsRecorder
from transmamba_mm.transfer.ssm import build_ssm_source


def test_every_parameter_has_the_expected_role():
    net = backbone(norm_cfg=dict(type='LN'), mixer_cfg=dict(bias=True))
    roles = net.param_roles()
    assert set(roles) == {name for name, _ in net.named_parameters()}
    assert roles['patch_embed.proj.bias'] == 'patch_embed.bias'
    assert roles['cls_token'] == 'cls_token'
    assert roles['norm_f.weight'] == 'final_norm.weight'
    layer = {
        name.removeprefix('layers.1.'): role.removeprefix('layers.1.')
        for name, role in roles.items()
        if name.startswith('layers.1.')
    }
    assert layer['norm.bias'] == 'mixer_norm.bias'
    assert layer['mixer.out_proj.bias'] == 'mixer_out.bias'
    for suffix in ('', '_b'):
        assert layer[f'mixer.conv1d{suffix}.weight'] == 'ssm.conv.weight'
        assert layer[f'mixer.x_proj{suffix}.weight'] == 'ssm.x_proj.weight'
        assert layer[f'mixer.dt_proj{suffix}.bias'] == 'ssm.dt_proj.bias'
        assert layer[f'mixer.D{suffix}'] == 'ssm.D'
        assert layer[f'mixer.A{suffix}_log'] == 'ssm.A'


@pytest.mark.parametrize('class_token', CLASS_TOKENS)
def test_subclones_a_vit_and_its_class_token(class_token):
    teacher = build(vit_cfg(), seed=1)
    out_type = 'avg_featmap' if class_token == 'none' else 'cls_token'
    config = tiny_student(
        dims=16, expand=1, class_token=class_token, out_type=out_type
    )
    student = build(config)
    plan, entries = plan_from(teacher, student)
    plan.apply(student)
    ours, theirs = student.backbone, teacher.backbone
    copied = {name for name, e in entries.items() if e.rule == 'copy'}
    assert copied >= {
        'patch_embed.proj.weight',
        'patch_embed.proj.bias',
        'pos_embed',
        'layers.1.norm.weight',
        'layers.1.mixer.out_proj.weight',
        'norm_f.weight',
        'head.fc.weight',
        *ours.CLASS_TOKENS[class_token],
    }
    assert all('mixer.' not in n or 'out_proj' in n for n in copied)
    slots = ours.class_token_slots(4, 4)
    classes, patches = split_class_tokens(ours.pos_embed, slots)
    assert patches.equal(theirs.pos_embed[:, 1:])
    for i, name in enumerate(ours.CLASS_TOKENS[class_token]):
        assert getattr(ours, name).equal(theirs.cls_token)
        assert classes[:, i].equal(theirs.pos_embed[:, 0])
    # The residual stream now starts as the teacher's does.
    x = images(16, 16)
    ours_in, theirs_in = [], []
    ours.layers[0].register_forward_pre_hook(
        lambda m, args: ours_in.append(args[0])
    )
    theirs.layers[0].register_forward_pre_hook(
        lambda m, args: theirs_in.append(args[0])
    )
    student(x), teacher(x)
    _, ours_patches = split_class_tokens(ours_in[0], slots)
    torch.testing.assert_close(ours_patches, theirs_in[0][:, 1:], **CLOSE)
    assert 0 < plan.coverage < 100


def test_subclones_a_wider_teacher_onto_another_grid():
    teacher = build(vit_cfg(dims=24, depth=3, img_size=24), seed=1)
    student = build(tiny_student(dims=16))
    plan, entries = plan_from(teacher, student)
    rules = {name: entry.rule for name, entry in entries.items()}
    assert rules['pos_embed'] == 'resize'
    assert rules['cls_token'] == 'select'
    assert rules['patch_embed.proj.weight'] == 'select'
    assert rules['layers.0.mixer.in_proj.weight'] == 'fresh'
    plan.apply(student)
    # The class token's position is the first one of the teacher.
    own = student.backbone.pos_embed[0, 8]
    assert own.equal(teacher.backbone.pos_embed[0, 0, :16])


@pytest.mark.parametrize(
    'family', ['VisionTransformer', 'DistilledVisionTransformer', 'DeiT3']
)
def test_position_of_the_class_token_is_the_teachers(family):
    """A distilled DeiT has a second token, DeiT III gives it no position."""
    config = vit_cfg()
    config['backbone']['type'] = family
    if family.startswith('Distilled'):
        config['backbone']['out_type'] = 'cls_token'
    teacher = build(config, seed=1)
    student = build(tiny_student(dims=16))
    plan, entries = plan_from(teacher, student)
    assert entries['pos_embed'].rule == 'copy'
    plan.apply(student)
    own, theirs = student.backbone.pos_embed[0, 8], teacher.backbone.pos_embed
    if family == 'DeiT3':
        assert own.eq(0).all()
    else:
        assert own.equal(theirs[0, 0])


def test_state_space_from_attention_and_from_a_pretrained_vim():
    teacher = build(vit_cfg(), seed=1)
    student = build(tiny_student(dims=16))
    _, entries = plan_from(teacher, student, ssm=build_ssm_source('attention'))
    for name in ('x_proj', 'x_proj_b', 'in_proj'):
        assert entries[f'layers.0.mixer.{name}.weight'].rule == 'attention'
    pretrained = build(tiny_student(dims=16), seed=5).backbone.state_dict()
    source = build_ssm_source('vim.pth', pretrained, conv_init='normal')
    plan, entries = plan_from(teacher, student, ssm=source)
    for name in (
        'A_log',
        'A_b_log',
        'D_b',
        'dt_proj_b.bias',
        'in_proj.weight',
    ):
        assert entries[f'layers.0.mixer.{name}'].rule == 'ssm'
    assert entries['layers.1.mixer.conv1d_b.weight'].rule == 'init'
    plan.apply(student)
    assert student.backbone.layers[1].mixer.A_b_log.equal(
        pretrained['layers.1.mixer.A_b_log']
    )


@pytest.mark.parametrize('tap', ['out', 'inner', 'residual'])
@pytest.mark.parametrize('class_token', CLASS_TOKENS)
def test_records_show_the_patches_in_scan_order(class_token, tap):
    net = backbone(class_token=class_token)
    slots = net.class_token_slots(4, 4)
    streams, shown = [], {}
    net.layers[1].register_forward_pre_hook(
        lambda m, args: streams.append(split_class_tokens(args[0], slots)[1])
    )
    taps = net.layers[1].mixer.taps
    for name, module in (taps.inner if tap == 'inner' else taps.out).items():
        module.register_forward_hook(
            lambda m, args, out, name=name: shown.update({name: out})
        )
    recorder = DirectionTapsRecorder(tap)
    recorder.initialize(net)
    with recorder:
        net(images(16, 16))
    records = recorder.get_record_data()
    assert [r.layer for r in records] == [0, 0, 1, 1]
    for record in records[2:]:
        places = net.class_token_positions(record.direction, 4, 4)
        _, expected = split_class_tokens(shown[record.direction], places)
        if tap == 'residual':
            stream = streams[0]
            reverse = record.direction == DIRECTIONS[1]
            expected = expected + (stream.flip(1) if reverse else stream)
        torch.testing.assert_close(record.tokens, expected, **CLOSE)


@pytest.mark.parametrize('class_token', CLASS_TOKENS)
def test_one_step_of_distillation(class_token, tmp_path):
    out_type = 'avg_featmap' if class_token == 'none' else 'cls_token'
    student = tiny_student(class_token=class_token, out_type=out_type)
    assert_distillation_learns(student, tmp_path)
