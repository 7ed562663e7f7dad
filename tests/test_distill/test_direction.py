# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Each direction's share of the attention, and the loss on it."""

import pytest
import torch
from distill_cases import PREPROCESSOR
from helpers import build, pmamba_cfg, tiny_batch, vit_cfg

from transmamba_mm.contract import Student, Teacher
from transmamba_mm.distill import TeacherSiteRecorder
from transmamba_mm.distill.losses import normalised_mse
from transmamba_mm.distill.methods import direction as module
from transmamba_mm.distill.methods.direction import (
    attention_by_direction,
    direction_shares,
)
from transmamba_mm.registry import MODELS

CLOSE = dict(rtol=1e-4, atol=1e-5)


def vim_cfg(**backbone):
    settings = dict(
        arch=dict(embed_dims=16, num_layers=2, expand=1, ffn_ratio=2),
        img_size=16,
        patch_size=4,
        mixer_cfg=dict(d_state=4),
    )
    settings.update(backbone)
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='transmamba.VisionMamba', **settings),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
    )


STUDENTS = {
    'four directions': pmamba_cfg(),
    'two of them': pmamba_cfg(directions=('raster', 'column')),
    'one': pmamba_cfg(directions=('raster',)),
    'class token in the middle': vim_cfg(),
    'no class token': vim_cfg(class_token='none', out_type='avg_featmap'),
}
every_student = pytest.mark.parametrize(
    'config', STUDENTS.values(), ids=STUDENTS
)


@torch.no_grad()
def record(model, *sites):
    recorders = [TeacherSiteRecorder(site) for site in sites]
    for recorder in recorders:
        recorder.initialize(model)
        recorder.__enter__()
    model(tiny_batch()[0])
    for recorder in recorders:
        recorder.__exit__(None, None, None)
    return [recorder.get_record_data() for recorder in recorders]


def whole(record):
    return torch.cat([record.classes, record.tokens], dim=1)


@every_student
@pytest.mark.parametrize('extra', [0, 1, 2])
def test_shares_sum_to_one(config, extra):
    student = build(config).backbone
    shares = direction_shares(student, (3, 4), extra)
    assert shares.shape == (len(student.directions), extra + 12, extra + 12)
    torch.testing.assert_close(
        shares.sum(0), torch.ones(extra + 12, extra + 12)
    )
    assert (shares >= 0).all()


@every_student
def test_a_direction_has_no_share_in_what_it_has_not_visited(config):
    student = build(config).backbone
    shares = direction_shares(student, (3, 4), 1)[:, 1:, 1:]
    anybody = torch.zeros(12, 12, dtype=torch.bool)
    visited = []
    for direction in student.directions:
        steps = torch.empty(12, dtype=torch.long)
        steps[student.scan_order(direction, 3, 4)] = torch.arange(12)
        visited.append(steps[None, :] < steps[:, None])
        anybody |= visited[-1]
    for share, seen in zip(shares, visited):
        assert (share[seen] > 0).all()
        assert (share[anybody & ~seen] == 0).all()
        # A token itself is everybody's.
        torch.testing.assert_close(
            share.diagonal(), torch.full((12,), 1 / len(visited))
        )


@every_student
@pytest.mark.parametrize('scale', [None, 0.3])
def test_parts_sum_to_the_attention_output(config, scale):
    backbone = {} if scale is None else dict(layer_scale_init_value=scale)
    model = build(vit_cfg(**backbone))
    teacher = Teacher(model)
    qkv, mixers = record(model, 'qkv', 'mixers')
    student = build(config).backbone
    shares = direction_shares(student, (4, 4), 1)
    for layer, (found, mixed) in enumerate(zip(qkv, mixers)):
        parts = attention_by_direction(
            whole(found), 2, teacher.mixer_out(layer), shares
        )
        module = teacher.module(f'layers.{layer}.mixer_out.weight')
        bias = module.bias if scale is None else scale_of(teacher, layer)
        torch.testing.assert_close(parts.sum(1) + bias, whole(mixed), **CLOSE)


def scale_of(teacher, layer):
    gamma = teacher.parameter(f'layers.{layer}.mixer_scale')
    return gamma * teacher.module(f'layers.{layer}.mixer_out.weight').bias


def algorithm(student, teacher=None, **method):
    return MODELS.build(
        dict(
            type='transmamba.TransMambaDistill',
            architecture=student,
            teacher=teacher or vit_cfg(),
            data_preprocessor=dict(PREPROCESSOR),
            distiller=dict(
                type='transmamba.MethodDistiller',
                methods=[
                    dict(type='transmamba.DirectionalMixerMatching', **method)
                ],
            ),
        )
    )


@pytest.mark.parametrize('tau', [None, 0.1])
@every_student
def test_the_loss_compares_each_direction_with_its_share(config, tau):
    torch.manual_seed(0)
    model = algorithm(config, tau=tau)
    images, samples = tiny_batch()
    loss = model(images, samples, mode='loss')['distill.loss_direction']
    qkv, streams = record(model.teacher, 'qkv', 'streams')
    teacher = Teacher(model.teacher)
    student = Student(model.student).backbone
    shares = direction_shares(student, (4, 4), 1)
    errors = []
    for layer, block in enumerate(student.blocks()):
        wanted = attention_by_direction(
            whole(qkv[layer]), 2, teacher.mixer_out(layer), shares
        )[:, :, 1:]
        mixer = student.mixers()[layer]
        shown = {}
        handles = [
            tap.register_forward_hook(
                lambda _, args, out, name=name, into=shown: into.update(
                    {name: args[0]}
                )
            )
            for name, tap in mixer.taps.out.items()
        ]
        read = student.joined(streams[layer])
        mixer(block.norm(read), (4, 4))
        for handle in handles:
            handle.remove()
        for m, name in enumerate(student.directions):
            skip = set(student.class_token_positions(name, 4, 4))
            keep = [i for i in range(read.shape[1]) if i not in skip]
            order = student.scan_order(name, 4, 4)
            errors.append(
                normalised_mse(shown[name][:, keep], wanted[:, m][:, order])
            )
    errors = torch.stack(errors).unflatten(0, (-1, len(student.directions)))
    wanted = errors.mean()
    if tau is not None:
        weights = (errors.detach() / tau).softmax(0)
        wanted = (weights * errors).sum(0).mean()
    torch.testing.assert_close(loss, wanted, **CLOSE)
    modules = torch.nn.ModuleList(x.in_proj for x in student.mixers())
    parameters = list(modules.parameters())
    for found, grad in zip(
        torch.autograd.grad(loss, parameters, retain_graph=True),
        torch.autograd.grad(wanted, parameters),
    ):
        torch.testing.assert_close(found, grad, **CLOSE)


def test_weights_of_layers_are_those_of_the_global_batch(monkeypatch):
    """Of the mean error over all processes, be their own what they may."""
    torch.manual_seed(0)
    model = algorithm(pmamba_cfg(), tau=0.1)
    plain = model(*tiny_batch(), mode='loss')['distill.loss_direction']

    def from_afar(errors, op):
        assert op == 'mean'
        errors.copy_(errors.flip(0))

    monkeypatch.setattr(module, 'all_reduce', from_afar)
    other = model(*tiny_batch(), mode='loss')['distill.loss_direction']
    assert other < plain  # the worst layer counts least


def test_layers_may_be_weighed_by_their_error():
    torch.manual_seed(0)
    images, samples = tiny_batch()
    plain, weighed = algorithm(pmamba_cfg()), algorithm(pmamba_cfg(), tau=0.1)
    weighed.load_state_dict(plain.state_dict())
    name = 'distill.loss_direction'
    low = plain(images, samples, mode='loss')[name]
    high = weighed(images, samples, mode='loss')[name]
    assert high > low  # the worst layer counts most
    even = algorithm(pmamba_cfg(), tau=1e6)
    even.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        even(images, samples, mode='loss')[name], low, **CLOSE
    )


@pytest.mark.parametrize(
    ('student', 'teacher', 'method', 'message'),
    [
        (pmamba_cfg(dims=20), vit_cfg(), {}, 'not wider'),
        (
            vim_cfg(),
            vit_cfg(with_cls_token=False, out_type='avg_featmap'),
            {},
            'needs a teacher with a class token',
        ),
        (pmamba_cfg(), vit_cfg(), dict(tau=0), 'tau must be positive'),
    ],
)
def test_mistakes(student, teacher, method, message):
    with pytest.raises(ValueError, match=message):
        algorithm(student, teacher, **method)


@pytest.mark.parametrize('option', ['qk_norm', 'scale_attn_norm'])
def test_attention_with_more_in_it_is_refused(option):
    teacher = dict(
        type='mmpretrain.TimmClassifier',
        model_name='vit_tiny_patch16_224',
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        **{option: True},
    )
    with pytest.raises(ValueError, match=r'attention that has (q_|k_|)norm'):
        algorithm(pmamba_cfg(), teacher)
