# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What teachers see, and several of them."""

import copy

import numpy as np
import pytest
import torch
from helpers import (
    TinyPictures,
    build,
    pmamba_cfg,
    save_teacher,
    tiny_batch,
    tiny_runner,
    tiny_student,
    tiny_teacher,
    vit_cfg,
)
from mmengine.dataset import pseudo_collate
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

from transmamba_mm.contract import TeacherError
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import MODELS
from transmamba_mm.transfer import SubcloneInitializer

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
HALF = dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)


def of(*methods):
    return dict(type='transmamba.MethodDistiller', methods=list(methods))


def method(kind, **kwargs):
    return dict(type=f'transmamba.{kind}', **kwargs)


HIDDEN = method('HiddenStates', channels='learned')
LOGITS = method('LogitsKD')


def resnet(classes=3):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=32),
    )


# --------------------------------------------------------- what they see


def seen_by(model, batch, training=True):
    """What goes into the teacher's patch embedding in a step."""
    seen = []
    handle = model.teacher.backbone.patch_embed.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    data = model.data_preprocessor(batch, training)
    losses = model(**data, mode='loss')
    handle.remove()
    return seen[0], losses


def raw_batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (4, 3, 16, 16), generator=generator)
    samples = [DataSample().set_gt_label(i % 3) for i in range(4)]
    return dict(inputs=list(images.byte()), data_samples=samples)


def test_a_teacher_is_given_its_own_normalisation(make):
    model = make(
        architecture=dict(tiny_student(), data_preprocessor=dict(IMAGENET)),
        teacher=dict(tiny_teacher(), data_preprocessor=dict(HALF)),
    )
    found, _ = seen_by(model, raw_batch())
    wanted = ClsDataPreprocessor(**HALF)(raw_batch())['inputs']
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=2e-6)


def test_a_teacher_that_states_nothing_sees_the_students_batch(make):
    model = make(data_preprocessor=dict(IMAGENET))
    found, _ = seen_by(model, raw_batch())
    assert found.equal(model.data_preprocessor(raw_batch())['inputs'])


def test_mixup_reaches_the_teacher_in_its_own_normalisation(make):
    np.random.seed(0)
    augments = dict(augments=dict(type='Mixup', alpha=1.0))
    preprocessor = dict(IMAGENET, num_classes=3, batch_augments=augments)
    model = make(
        architecture=dict(tiny_student(), data_preprocessor=preprocessor),
        teacher=dict(tiny_teacher(), data_preprocessor=dict(HALF)),
    )
    student_saw = []
    model.student.backbone.patch_embed.register_forward_pre_hook(
        lambda module, inputs: student_saw.append(inputs[0])
    )
    found, _ = seen_by(model, raw_batch())
    mean, std = (torch.tensor(IMAGENET[k]).view(-1, 1, 1) for k in IMAGENET)
    pixels = student_saw[0] * std + mean
    raw = torch.stack(raw_batch()['inputs']).float()
    assert (pixels - raw).abs().max() > 10  # mixed indeed
    wanted = (pixels.flip(1) - 127.5) / 127.5
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


SIZED = dict(type='transmamba.ResizingDataPreprocessor', size=24)


@pytest.mark.parametrize(
    'config',
    [
        HIDDEN,
        method('LastLayerHint'),
        method('MixerMatching', teacher_forced=False),
        method('TokenRelations'),
        method('AdaptiveBidirectional'),
        LOGITS,
    ],
    ids=lambda config: config['type'],
)
def test_a_teacher_may_have_its_own_resolution(config):
    teacher = build(dict(vit_cfg(img_size=24), data_preprocessor=dict(SIZED)))
    torch.manual_seed(0)
    model = TransMambaDistill(
        MODELS.build(pmamba_cfg()), teacher, of(config)
    ).train()
    found, losses = seen_by(model, raw_batch())
    assert found.shape == (4, 3, 24, 24)
    (loss,) = (v for k, v in losses.items() if k.startswith('distill.loss'))
    loss.backward()
    gradient = model.student.backbone.layers[0].mamba.in_proj.weight.grad
    assert gradient.isfinite().all() and gradient.any()


# ------------------------------------------------------- several of them


@pytest.fixture
def two(tmp_path):
    """A student of two teachers."""
    configs = dict(vit=tiny_teacher(), cnn=resnet())
    paths = {
        name: save_teacher(tmp_path / f'{name}.pth', config, seed=seed)
        for seed, (name, config) in enumerate(configs.items())
    }

    def make(*methods, **kwargs):
        torch.manual_seed(0)
        settings = dict(
            architecture=tiny_student(),
            teacher=copy.deepcopy(configs),
            teacher_ckpt=paths,
            distiller=of(*methods),
        )
        settings.update(kwargs)
        model = TransMambaDistill(**settings)
        model.init_weights()
        return model.train()

    make.paths = paths
    return make


BOTH = (
    method('HiddenStates', teacher='vit', channels='learned'),
    method('LogitsKD', teacher='vit', name='kl_vit', loss_weight=0.3),
    method('LogitsKD', teacher='cnn', name='kl_cnn', loss_weight=0.5),
)


def test_each_method_reads_its_own_teacher(two, make):
    """As much as each teacher alone gives."""
    images, samples = tiny_batch()
    losses = two(*BOTH)(images, samples, mode='loss')
    vit, cnn = two.paths['vit'], two.paths['cnn']
    alone = {}
    for name, teacher, path, config in (
        ('hidden', tiny_teacher(), vit, HIDDEN),
        ('kl_vit', tiny_teacher(), vit, method('LogitsKD', loss_weight=0.3)),
        ('kl_cnn', resnet(), cnn, method('LogitsKD', loss_weight=0.5)),
    ):
        model = make(teacher=teacher, teacher_ckpt=path, distiller=of(config))
        # The same student: the projections in front of it differ in number.
        model.load_state_dict(two(*BOTH).state_dict(), strict=False)
        found = model(images, samples, mode='loss')
        alone[name] = next(
            v for k, v in found.items() if k.startswith('distill.loss')
        )
    for name, value in alone.items():
        torch.testing.assert_close(losses[f'distill.loss_{name}'], value)
        assert value > 0


def test_all_teachers_are_frozen_loaded_and_in_eval_mode(two):
    model = two(*BOTH)
    state = model.teacher.state_dict()
    for name, path in two.paths.items():
        for key, value in torch.load(path).items():
            assert value.equal(state[f'{name}.{key}'])
    assert not any(module.training for module in model.teacher.modules())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    losses = model(*tiny_batch(), mode='loss')
    model.parse_losses(losses)[0].backward()
    after = model.teacher.state_dict()
    assert all(value.equal(after[key]) for key, value in state.items())


def test_each_has_its_own_normalisation_and_size(two):
    model = two(
        *BOTH,
        architecture=dict(tiny_student(), data_preprocessor=dict(IMAGENET)),
        teacher=dict(
            vit=dict(tiny_teacher(), data_preprocessor=dict(HALF)),
            cnn=dict(resnet(), data_preprocessor=dict(SIZED)),
        ),
    )
    seen = {}
    for name, module in (
        ('vit', model.teacher.vit.backbone.patch_embed),
        ('cnn', model.teacher.cnn.backbone),
    ):
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
    data = model.data_preprocessor(raw_batch(), True)
    model(**data, mode='loss')
    wanted = ClsDataPreprocessor(**HALF)(raw_batch())['inputs']
    torch.testing.assert_close(seen['vit'], wanted, rtol=1e-6, atol=2e-6)
    assert seen['cnn'].shape == (4, 3, 24, 24)


def test_a_teacher_that_nobody_reads_now_does_not_run(two):
    late = dict(BOTH[2], begin=0.5)
    model, runs = two(BOTH[0], late), []
    model.teacher.cnn.register_forward_hook(lambda *args: runs.append(1))
    for progress, wanted in ((0.1, 0), (0.6, 1)):
        model.schedule.progress = progress
        model(*tiny_batch(), mode='loss')
        assert len(runs) == wanted


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (
            dict(distiller=of(HIDDEN)),
            TeacherError,
            r"teachers \['vit', 'cnn'\]: say by teacher=",
        ),
        (
            dict(distiller=of(LOGITS)),
            TeacherError,
            r"teachers \['vit', 'cnn'\]: say by teacher=",
        ),
        (
            dict(distiller=of(method('LogitsKD', teacher='bert'))),
            TeacherError,
            "called 'bert'",
        ),
        (
            dict(distiller=of(method('HiddenStates', teacher='cnn'))),
            TeacherError,
            "called 'cnn'",
        ),
        (dict(teacher_ckpt=None), ValueError, 'the teacher vit has no weig'),
        (
            dict(teacher_ckpt='a.pth'),
            ValueError,
            r"\['vit', 'cnn'\]: say teacher_ckpt=dict",
        ),
        (
            dict(teacher=dict(vit=dict(backbone=dict(type='ResNet')))),
            ValueError,
            "'vit' is none: give the teacher its type",
        ),
    ],
)
def test_mistakes(two, changes, error, message):
    with pytest.raises(error, match=message):
        two(*BOTH, **changes)


def test_subcloning_takes_from_the_one_that_is_named(two):
    student = pmamba_cfg(dims=16, depth=3)
    model = two(method('LogitsKD', teacher='cnn'), architecture=student)
    for hook, name in (
        (SubcloneInitializer(teacher_backbone='vit'), 'vit'),
        (SubcloneInitializer(), 'vit'),  # the only Transformer
    ):
        hook.importance = 'first'
        hook.make_plan(model).apply(model.student)
        wanted = torch.load(two.paths[name])['head.layers.head.weight']
        assert model.student.head.fc.weight.equal(wanted)


def test_activations_are_those_of_the_teachers_own_images(two):
    model = two(
        method('HiddenStates', teacher='vit'),
        teacher=dict(
            vit=dict(tiny_teacher(), data_preprocessor=dict(HALF)),
            cnn=resnet(),
        ),
    )
    seen = []
    model.teacher.vit.backbone.patch_embed.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    hook = SubcloneInitializer(
        teacher_backbone='vit', importance='activation', num_batches=1
    )
    loader = DataLoader(TinyPictures(4), 4, collate_fn=pseudo_collate)
    hook.make_plan(model, lambda: loader)
    wanted = ClsDataPreprocessor(**HALF)(next(iter(loader)))['inputs']
    found, wanted = (
        x.flatten(1).sum(1).sort().values for x in (seen[0], wanted)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_channels_kept_of_one_teacher_mean_nothing_to_another(two, tmp_path):
    hidden = method('HiddenStates', teacher='vit')
    again = method('HiddenStates', teacher='other', name='other')
    path = save_teacher(tmp_path / 'other.pth', seed=5)
    model = two(
        hidden,
        again,
        teacher=dict(vit=tiny_teacher(), other=tiny_teacher()),
        teacher_ckpt=dict(vit=two.paths['vit'], other=path),
    )
    runner = tiny_runner(
        tmp_path,
        model,
        custom_hooks=[
            dict(
                type='transmamba.SubcloneInitializer',
                teacher_backbone='other',
                importance='magnitude',
            )
        ],
    )
    with pytest.raises(RuntimeError, match='gave it, and it gave none'):
        runner.train()
    kept = {
        name: loss.kept.width_12.min().item()
        for name, loss in model.distiller.distill_losses.items()
    }
    assert kept['loss_hidden'] == -1 and kept['loss_other'] >= 0
