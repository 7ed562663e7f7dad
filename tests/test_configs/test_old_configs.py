# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Configs of version 0.1, as its runs left them, still mean the same.

``tests/data/old_configs`` holds them with all of their bases filled in.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import own_name, save_teacher
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmrazor.models import SingleTeacherDistill

from transmamba_mm.distill import TransMambaDistill

OLD = Path(__file__).resolve().parents[1] / 'data' / 'old_configs'
QUICKSTART = 'transmamba_deit_pmamba_digits'
LOGITS = 'logits-kd_deit_pmamba_digits'
PAPER = 'transmamba_deit-tiny_pmamba-tiny_8xb64-300e_cifar100'
SHORT = {
    'train_cfg.max_epochs': 1,
    'default_hooks.distill_monitor.interval': 1,
    'default_hooks.logger.interval': 1,
    'log_processor': dict(window_size=1),  # nothing averaged
    # An image of each digit, in three batches.
    'train_dataloader.dataset.fraction': 0.001,
    'train_dataloader.batch_size': 4,
    'train_dataloader.num_workers': 0,
}
ITERATIONS = 3


def run(name, folder):
    """Trains by an old config; the runner and the lines of its log."""
    cfg = Config.fromfile(OLD / f'{name}.py')
    cfg.merge_from_dict(SHORT)
    if name == PAPER:
        # Without its data, and with pictures of 64 pixels.
        steps = [dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]
        cfg.train_dataloader.dataset.dataset = dict(
            type='transmamba.Digits', split='train', pipeline=steps
        )
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.work_dir = str(folder)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        cfg.model.teacher_ckpt = save_teacher(
            folder / 'teacher.pth', cfg.model.teacher
        )
    cfg.experiment_name = own_name().partition('=')[2]
    runner = Runner.from_cfg(cfg)
    runner.train()
    (path,) = folder.glob('*/vis_data/scalars.json')
    return runner, list(map(json.loads, path.read_text().splitlines()))


@pytest.fixture(scope='module', params=[QUICKSTART, LOGITS, PAPER])
def trained(request, tmp_path_factory):
    runner, lines = run(request.param, tmp_path_factory.mktemp('old'))
    return request.param, runner, lines


def losses_of(lines):
    """The logged losses of each iteration."""
    return [
        {k: v for k, v in line.items() if 'loss' in k and '/' not in k}
        for line in lines
        if 'loss' in line
    ]


def test_algorithm_and_teacher(trained):
    name, runner, _ = trained
    assert type(runner.model) is TransMambaDistill
    assert isinstance(runner.model, SingleTeacherDistill)
    assert runner.model.alpha == 0.5
    saved = torch.load(Path(runner.work_dir) / 'teacher.pth')
    found = runner.model.teacher.state_dict()
    assert found.keys() == saved.keys()
    for key, value in saved.items():
        assert torch.equal(found[key], value), key
    # Subcloned, and trained for a moment.
    norm = 'backbone.ln1.weight'
    of_student = runner.model.student.state_dict()[norm]
    near = torch.allclose(of_student, saved[norm], atol=0.02)
    assert near == (name != LOGITS)


def test_losses_that_appear(trained):
    name, _, lines = trained
    ours = 'distill.loss_kl' if name == LOGITS else 'distill.loss_transmamba'
    losses = losses_of(lines)
    assert len(losses) == ITERATIONS
    for found in losses:
        assert found.keys() == {'loss', 'student.loss', ours}
        total = found['student.loss'] + found[ours]
        assert found['loss'] == pytest.approx(total)


def test_weight_of_the_task(trained):
    name, runner, _ = trained
    model = runner.model.train()
    data = next(iter(runner.train_dataloader))
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    task = model.student(**data, mode='loss')['loss']
    if name != LOGITS:
        torch.testing.assert_close(losses['student.loss'], task / 2)
        return
    # This loss has its own weight, and leaves the task's alone.
    torch.testing.assert_close(losses['student.loss'], task)
    of_student, of_teacher = (
        F.log_softmax(part(data['inputs'], mode='tensor') / 2, 1)
        for part in (model.student, model.teacher)
    )
    wanted = 4 * F.kl_div(
        of_student, of_teacher, reduction='batchmean', log_target=True
    )
    torch.testing.assert_close(losses['distill.loss_kl'], wanted)


def test_a_term_per_layer_and_direction(trained):
    name, _, lines = trained
    terms = [
        {
            kind: {
                key.partition(f'/{kind}/')[2]: value
                for key, value in line.items()
                if key.startswith(f'loss_transmamba/{kind}/')
            }
            for kind in ('similarities', 'weights')
        }
        for line in lines
    ]
    terms = [found for found in terms if found['weights']]
    if name == LOGITS:
        assert not terms
        return
    assert len(terms) == ITERATIONS
    layers = 12 if name == PAPER else 4
    for found, logged in zip(terms, losses_of(lines)):
        assert len(found['weights']) == 4 * layers
        wanted = sum(
            weight * (1 - found['similarities'][key])
            for key, weight in found['weights'].items()
        )
        # 1 - alpha of it.
        half = pytest.approx(wanted / 2, rel=1e-4)
        assert logged['distill.loss_transmamba'] == half
        # Softmax with a temperature of 0.1.
        direction = next(iter(found['weights'])).partition('/')[0]
        of_one = [
            (found['similarities'][key], weight)
            for key, weight in found['weights'].items()
            if key.startswith(f'{direction}/')
        ]
        similarities, weights = map(torch.tensor, zip(*of_one))
        wanted = torch.softmax(-similarities / 0.1, 0)
        torch.testing.assert_close(weights, wanted, rtol=1e-3, atol=1e-4)
