# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A narrower student that keeps the map to its teacher's width."""

import pytest
import torch
import torch.nn.functional as F
from distill_cases import method, of_methods
from helpers import build, plan_from, pmamba_cfg, vit_cfg
from pair_cases import CLASSES, batch_of, patches, vision_mamba, vit
from torch import nn

from transmamba_mm.contract import Student
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import MODELS
from transmamba_mm.transfer import TransferError

CLOSE = dict(rtol=1e-5, atol=1e-6)
DIMS = 12


def neck(out_channels=16, **kwargs):
    return dict(
        type='mmpretrain.LinearNeck',
        in_channels=DIMS,
        out_channels=out_channels,
        norm_cfg=None,
        **kwargs,
    )


def lifted_cfg(out_channels=16, **kwargs):
    config = pmamba_cfg(DIMS, classes=CLASSES)
    config['neck'] = {**neck(out_channels), **kwargs}
    config['head']['in_channels'] = out_channels
    return config


def lifted_vim():
    student = vision_mamba()
    student.neck = MODELS.build(dict(neck(), in_channels=16))
    return student


STUDENTS = {'PlainMamba': lambda: build(lifted_cfg()), 'Vim': lifted_vim}
CLASS_TOKENS = {'PlainMamba': (), 'Vim': (8,)}


def final_tokens(model):
    """Tokens of the last layer, normalised, by a hook of our own."""
    net, kept = model.backbone, []
    norm = net.norm_f if hasattr(net, 'norm_f') else net.ln1
    handle = net.layers[-1].register_forward_hook(
        lambda _, inputs, output: kept.append(output)
    )
    model(*batch_of(16), mode='loss')
    handle.remove()
    return norm(kept[0])


@pytest.mark.parametrize('name', STUDENTS)
def test_loss_and_gradient_are_those_of_the_neck(name):
    config = method('LastLayerHint', lifted=True)
    model = TransMambaDistill(STUDENTS[name](), vit(), of_methods(config))
    losses = model.train()(*batch_of(16), mode='loss')
    assert not list(model.distiller.parameters())
    fc = model.student.neck.fc
    tokens = patches(final_tokens(model.student), CLASS_TOKENS[name])
    with torch.no_grad():
        target = patches(final_tokens(model.teacher), (0,))
    found = F.linear(tokens, fc.weight, fc.bias)
    wanted = (found - target).square().mean()
    torch.testing.assert_close(losses['distill.loss_hint'], wanted, **CLOSE)
    parameters = [*model.student.backbone.parameters(), *fc.parameters()]
    for grad, other in zip(
        torch.autograd.grad(losses['distill.loss_hint'], parameters),
        torch.autograd.grad(wanted, parameters),
    ):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)


def test_the_head_reads_what_is_compared():
    """The mean of lifted tokens is the lifted mean."""
    student = build(lifted_cfg())
    fc = student.neck.fc
    lifted = F.linear(final_tokens(student), fc.weight, fc.bias)
    wanted = student.head.fc(lifted.mean(1))
    torch.testing.assert_close(
        student.head(student.extract_feat(batch_of(16)[0])), wanted, **CLOSE
    )


def test_other_methods_go_on_beside_it():
    methods = [
        method('LastLayerHint', lifted=True),
        method('HiddenStates', channels='learned'),
        method('LogitsKD', begin=0.5),
    ]
    phases = [dict(end=0.2, trains='lift', task_loss=False)]
    distiller = of_methods(*methods, phases=phases)
    model = TransMambaDistill(build(lifted_cfg()), vit(), distiller).train()
    names = {p: name for name, p in model.student.named_parameters()}
    found = []
    for progress in (0.0, 0.3, 0.7):
        model.schedule.progress = progress
        losses = model(*batch_of(16), mode='loss')
        held = {names.get(p) for p in model.held_parameters()} - {None}
        found.append(
            ({k for k in losses if 'loss' in k}, set(names.values()) - held)
        )
    early = {'distill.loss_hint', 'distill.loss_hidden'}
    late = early | {'student.loss', 'distill.loss_kl'}
    everything = set(names.values())
    assert found == [
        (early, {'neck.fc.weight', 'neck.fc.bias'}),
        (late - {'distill.loss_kl'}, everything),
        (late, everything),
    ]


# ------------------------------------------------------------- subcloning


@pytest.mark.parametrize('importance', ['first', 'magnitude', 'random'])
def test_the_start_is_that_of_a_head_cut_to_the_students_width(importance):
    """With the teacher's head, whole."""
    teacher = build(vit_cfg(classes=CLASSES))
    with_neck = build(lifted_cfg())
    without = build(pmamba_cfg(DIMS, classes=CLASSES))
    plan, entries = plan_from(teacher, with_neck, importance=importance)
    plan.apply(with_neck)
    head = teacher.head.layers.head
    assert entries['head.fc.weight'].rule == 'copy'
    assert entries['neck.fc.weight'].rule == 'init'
    assert with_neck.head.fc.weight.equal(head.weight)
    assert with_neck.head.fc.bias.equal(head.bias)
    plan_from(teacher, without, importance=importance)[0].apply(without)
    without.backbone.load_state_dict(with_neck.backbone.state_dict())
    images, _ = batch_of(16)
    torch.testing.assert_close(with_neck(images), without(images), **CLOSE)
    # Each channel has a place of its own.
    weight = with_neck.neck.fc.weight
    assert weight.sum(0).eq(1).all()
    assert weight.sum(1).le(1).all()


def test_a_student_as_wide_as_its_teacher_starts_with_the_identity():
    config = lifted_cfg()
    config['backbone']['arch']['embed_dims'] = 16
    config['neck']['in_channels'] = 16
    student = build(config)
    plan_from(build(vit_cfg(classes=CLASSES)), student)[0].apply(student)
    assert student.neck.fc.weight.equal(torch.eye(16))
    assert not student.neck.fc.bias.any()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    'other',
    [
        dict(norm_cfg=dict(type='BN1d')),
        dict(act_cfg=dict(type='GELU')),
    ],
    ids=['a norm', 'an activation'],
)
def test_a_neck_that_is_more_than_a_map_is_no_lift(other):
    student = Student(build(lifted_cfg(**other)))
    assert student.lift is None
    assert not any('lift' in role for role in student.roles().values())
    with pytest.raises(ValueError, match='has no lift: give it neck=dict'):
        student.modules_of('lifted')


def test_a_neck_of_another_width_is_told():
    student = build(lifted_cfg(out_channels=14))
    with pytest.raises(TransferError, match=r'14 channels.*teacher has 16'):
        plan_from(vit(), student)
    config = method('LastLayerHint', lifted=True)
    model = TransMambaDistill(student, vit(), of_methods(config)).train()
    message = r"14 channels, the teacher's 16: set out_channels"
    with pytest.raises(ValueError, match=message):
        model(*batch_of(16), mode='loss')


def test_the_neck_of_one_of_two_towers():
    model = nn.Module()
    model.image = build(lifted_cfg())
    model.text = build(pmamba_cfg(DIMS))
    name, module = Student(model, 'image.backbone').lift
    assert (name, module) == ('image.neck.fc', model.image.neck.fc)
    assert Student(model, 'text.backbone').lift is None
