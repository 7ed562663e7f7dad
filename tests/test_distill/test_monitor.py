# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""DistillMonitor: a check before the first step without a trace, and logs."""

import copy
import json
import random
import re

import numpy as np
import pytest
import torch
from distill_cases import method, of_methods
from helpers import (
    TinyPictures,
    tiny_distiller,
    tiny_runner,
    tiny_student,
    tiny_teacher,
)
from mmengine.dataset import InfiniteSampler, pseudo_collate
from mmengine.hooks import Hook
from mmpretrain.datasets import RepeatAugSampler
from torch.utils.data import DataLoader, IterableDataset

from transmamba_mm.contract.sites import LOGITS
from transmamba_mm.distill import (
    DistillLoss,
    DistillMethod,
    DistillMonitor,
    DistillScheduleHook,
    TransMambaDistill,
)
from transmamba_mm.registry import MODELS

DIRECTIONS = 4
LAYERS = 2
MIXUP = dict(augments=[dict(type='Mixup', alpha=0.8)])
PLAIN = dict(mean=[0.0] * 3, std=[255.0] * 3, num_classes=3)
LATER = (
    method('LogitsKD', name='early', end=0.5),
    method('LogitsKD', name='kl', begin=0.5),
)
SEVERAL = dict(type='MultiLabelLinearClsHead', num_classes=3, in_channels=12)
# None on a CPU; a GPU may add in another order.
ROUNDING = dict(rtol=1e-5, atol=1e-6)


@pytest.fixture
def make(teacher_ckpt):
    def build(**kwargs):
        settings = dict(
            architecture=tiny_student(),
            teacher=tiny_teacher(),
            distiller=tiny_distiller(),
            teacher_ckpt=teacher_ckpt,
        )
        settings.update(kwargs)
        return TransMambaDistill(**settings)

    return build


class Steps(Hook):
    """Counts the steps."""

    def __init__(self):
        self.num = 0

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.num += 1


def set_source(distiller, kind):
    if kind == 'class token':
        tokens = distiller['teacher_recorders']['tokens']
        tokens['num_extra_tokens'] = 0
    elif kind == 'tap width':
        distiller['student_recorders']['taps']['tap'] = 'inner'
    elif kind == 'teacher width':
        distiller['connectors']['calibration']['out_channels'] = 20
    elif kind == 'too few layers':
        loss = distiller['distill_losses']['loss_tm']
        loss['teacher_layers'] = 'uniform'
    return distiller


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('class token', r'16 tokens \(grid 4x4\), the teacher has 17'),
        ('tap width', r"expects 12 channels.*the tap has 24.*tap='inner'"),
        ('teacher width', r'have 20 channels, the teacher 16'),
        ('too few layers', r'needs all teacher layers'),
    ],
)
def test_mistakes_are_found_before_training(make, tmp_path, kind, message):
    steps = Steps()
    model = make(distiller=set_source(tiny_distiller(), kind))
    runner = tiny_runner(
        tmp_path, model, custom_hooks=[DistillMonitor(), steps]
    )
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert steps.num == 0
    assert not list(tmp_path.glob('*.pth'))


def test_a_grid_that_differs(make, tmp_path):
    student = tiny_student(patch_size=8)
    steps = Steps()
    runner = tiny_runner(
        tmp_path,
        make(architecture=student),
        custom_hooks=[DistillMonitor(), steps],
    )
    with pytest.raises(ValueError, match=r'grid 2x2.*set FeatureCalibra'):
        runner.train()
    assert steps.num == 0
    distiller = tiny_distiller()
    distiller['connectors']['calibration']['grid'] = (4, 4)
    tiny_runner(
        tmp_path,
        make(architecture=student, distiller=distiller),
        custom_hooks=[DistillMonitor(), steps],
    ).train()
    assert steps.num == 2


def random_states():
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2:],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_the_check_leaves_no_trace(make, tmp_path, frozen_stages):
    """Dropout, BatchNorm and mixed images would notice."""
    student = tiny_student(
        arch=dict(embed_dims=12, num_layers=2, layers_with_dwconv=(0,)),
        stem='conv',
        drop_rate=0.5,
        drop_path_rate=0.5,
        frozen_stages=frozen_stages,
    )
    student.update(train_cfg=MIXUP, data_preprocessor=PLAIN)
    model = make(architecture=student, distiller=of_methods(*LATER))
    seen = []

    class Watch(DistillMonitor):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            model.distiller.distill_losses['loss_kl'].register_forward_hook(
                lambda *args: seen.append(model.schedule.progress)
            )
            state = copy.deepcopy(model.state_dict())
            images, samples = (
                copy.deepcopy(data_batch[key])
                for key in ('inputs', 'data_samples')
            )
            modes = {n: m.training for n, m in model.named_modules()}
            randomness = random_states()
            super().before_train_iter(runner, batch_idx, data_batch)
            assert random_states() == randomness
            assert modes == {n: m.training for n, m in model.named_modules()}
            for key, value in model.state_dict().items():
                assert torch.equal(value, state[key]), key
            assert all(p.grad is None for p in model.parameters())
            assert all(map(torch.equal, images, data_batch['inputs']))
            for old, new in zip(samples, data_batch['data_samples']):
                assert old.keys() == new.keys()
            assert model.schedule.progress == 0

    tiny_runner(
        tmp_path, model, num=4, custom_hooks=[Watch(), DistillScheduleHook()]
    ).train()
    assert seen == [0.75]


def test_training_is_the_same_with_and_without(make, tmp_path):
    weights = []
    for name, hooks in (('with', [DistillMonitor(interval=1)]), ('out', [])):
        student = tiny_student(drop_rate=0.3)
        torch.manual_seed(5)
        model = make(architecture=student, distiller=of_methods(*LATER))
        torch.manual_seed(6)
        hooks = [*hooks, DistillScheduleHook()]
        tiny_runner(tmp_path / name, model, custom_hooks=hooks).train()
        weights.append(model.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], **ROUNDING)


def test_scalars_and_table(make, tmp_path):
    runner = tiny_runner(
        tmp_path,
        make(),
        num=16,
        visualizer=dict(
            type='UniversalVisualizer',
            vis_backends=[dict(type='LocalVisBackend')],
        ),
        custom_hooks=[DistillMonitor(interval=2)],
    )
    runner.train()
    (path,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [x for x in lines if any('similarities' in k for k in x)]
    assert [row['step'] for row in rows] == [2, 4]
    loss = runner.model.distiller.distill_losses['loss_tm']
    for kind, values in (
        ('similarities', loss.similarities),
        ('weights', loss.weights),
    ):
        for direction, layers in values.items():
            for layer in range(LAYERS):
                key = f'loss_tm/{kind}/{direction}/layer{layer:02d}'
                wanted = pytest.approx(layers[layer].item(), abs=1e-6)
                assert rows[-1][key] == wanted
    names = [k for k in rows[0] if k.startswith('loss_tm/')]
    assert len(names) == 2 * DIRECTIONS * LAYERS
    # The statistics of the loss reach the log as well.
    assert {'distill.sim_min', 'distill.w_max'} <= set(lines[0])

    (path,) = tmp_path.glob('*/*.log')
    log = path.read_text()
    for kind, values in loss.layer_statistics().items():
        table = log[log.rindex(f'loss_tm: {kind} by layer') :]
        for direction, layers in values.items():
            row = re.search(rf'  {direction}: (.*)', table).group(1)
            cells = [f'{i}: {x:.3f}' for i, x in layers.items()]
            assert row == ' '.join(cells)


class Stream(IterableDataset):
    """Has no samples by index."""

    def __iter__(self):
        return iter(TinyPictures(8))

    def __len__(self):
        return 8


def test_idle_without_a_distiller(tmp_path):
    """So default_runtime.py suits any data set and model."""
    model = MODELS.build(tiny_teacher())
    loader = DataLoader(Stream(), batch_size=4, collate_fn=pseudo_collate)
    passes = []
    model.register_forward_hook(lambda *args: passes.append(1))
    runner = tiny_runner(
        tmp_path,
        model,
        train_dataloader=loader,
        custom_hooks=[DistillMonitor(interval=1)],
    )
    runner.train()
    assert len(passes) == 2
    (path,) = tmp_path.glob('*/*.log')
    assert 'similarity' not in path.read_text()


def test_the_loaders_own_collate_function(make, tmp_path):
    def collate(samples):
        return pseudo_collate([dict(s, inputs=s['pixels']) for s in samples])

    class Renamed(TinyPictures):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return dict(sample, pixels=sample.pop('inputs'))

    loader = DataLoader(Renamed(8), batch_size=4, collate_fn=collate)
    steps = Steps()
    tiny_runner(
        tmp_path,
        make(),
        train_dataloader=loader,
        custom_hooks=[DistillMonitor(), steps],
    ).train()
    assert steps.num == 2


def several_labels(samples):
    for index, sample in enumerate(samples):
        sample['data_samples'].set_gt_label([index % 2, 2])
    return pseudo_collate(samples)


class SensitivityLoss(DistillLoss):
    """Takes a gradient of its own."""

    def forward(self, student, teacher):
        (score,) = torch.autograd.grad(
            student.logsumexp(1).sum(), student, create_graph=True
        )
        return (score - teacher.softmax(1)).square().mean()


class Sensitivity(DistillMethod):
    NAME = 'sensitivity'

    def loss(self):
        return dict(type=SensitivityLoss)

    def reads(self):
        return dict(student=self.student(LOGITS), teacher=self.teacher(LOGITS))


@pytest.mark.parametrize(
    ('student', 'loader'),
    [
        (dict(train_cfg=MIXUP), {}),
        (dict(train_cfg=dict(MIXUP, probs=0.5)), {}),
        (dict(data_preprocessor=dict(PLAIN, batch_augments=MIXUP)), {}),
        (dict(head=SEVERAL), dict(collate_fn=several_labels)),
        ({}, dict(dataset=Stream())),
        ({}, dict(dataset=TinyPictures(3))),
        ({}, dict(sampler=InfiniteSampler(range(8)))),
        ({}, dict(sampler=RepeatAugSampler(range(300)))),
        ({}, dict(batch_size=1)),
    ],
)
def test_what_trains_is_not_refused(make, tmp_path, student, loader):
    methods = (*LATER, dict(type=Sensitivity, begin=0.5))
    model = make(
        architecture={**tiny_student(), 'data_preprocessor': PLAIN, **student},
        distiller=of_methods(*methods),
    )
    settings = dict(dataset=TinyPictures(300), batch_size=4)
    settings.update(dict(collate_fn=pseudo_collate), **loader)
    steps = Steps()
    tiny_runner(
        tmp_path,
        model,
        train_dataloader=DataLoader(**settings),
        train_cfg=dict(by_epoch=False, max_iters=2),
        custom_hooks=[steps, DistillMonitor(), DistillScheduleHook()],
    ).train()
    assert steps.num == 2
