# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Two processes that share the weights train as one does."""

import inspect

import pytest
import torch
from helpers import (
    CONFIGS,
    ForkedTool,
    own_name,
    run_tool_here,
    save_teacher,
)
from mmengine._strategy import DeepSpeedStrategy
from mmengine.config import Config
from mmengine.device import get_device

# Subcloning, a teacher, activation checkpointing, accumulated gradients.
PLAIN = f"""
_base_ = ['{CONFIGS}/quickstart/transmamba_deit_pmamba_digits_paper.py']
model = dict(
    teacher_ckpt='teacher.pth',
    architecture=dict(backbone=dict(with_cp=True)))
train_dataloader = dict(
    dataset=dict(
        fraction=0.1, dataset=dict(pipeline={{{{_base_.test_pipeline}}}})))
optim_wrapper = dict(
    accumulative_counts=5,
    optimizer=dict(
        _delete_=True, type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01))
train_cfg = dict(max_epochs=2)
"""
SHARED = """
_base_ = ['plain.py']
runner_type = 'transmamba.StagedRunner'
strategy = dict(type='transmamba.FullyShardStrategy')
"""
TOLERANCE = dict(rtol=1e-4, atol=2e-6)


@pytest.mark.skipif(get_device() != 'cpu', reason='compares runs on the CPU')
def test_a_shared_model_trains_as_a_whole_one(tmp_path, monkeypatch):
    (tmp_path / 'plain.py').write_text(PLAIN)
    (tmp_path / 'shared.py').write_text(SHARED)
    teacher = Config.fromfile(CONFIGS / '_base_/models/deit_digits.py').teacher
    teacher = dict(teacher, type='mmpretrain.ImageClassifier')
    save_teacher(tmp_path / 'teacher.pth', teacher)
    monkeypatch.chdir(tmp_path)

    def arguments(config, work_dir, batch):
        return [
            *(f'{config}.py', '--work-dir', work_dir, '--no-validate'),
            *('--cfg-options', f'train_dataloader.batch_size={batch}'),
            own_name(),
        ]

    options = [*arguments('shared', 'two', 16), '--launcher', 'pytorch']
    run = ForkedTool(tmp_path, 'train', *options, ranks=2)
    try:
        run_tool_here(monkeypatch, 'train', *arguments('plain', 'one', 32))
    finally:
        log = run.wait()
    assert 'weight subcloning: ' in log
    # A checkpoint of two is resumed by one.
    options = ['--resume', 'two/epoch_1.pth']
    run_tool_here(
        monkeypatch, 'train', *arguments('plain', 'resumed', 32), *options
    )
    states = {
        name: torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False)
        for name in ('one', 'two', 'resumed')
    }
    wanted = states.pop('one')
    start = torch.load('two/epoch_1.pth', weights_only=False)['state_dict']
    moved = 0.0
    for run, found in states.items():
        assert found['state_dict'].keys() == wanted['state_dict'].keys()
        for name, value in wanted['state_dict'].items():
            torch.testing.assert_close(
                found['state_dict'][name],
                value,
                msg=lambda text, name=(run, name): f'{name}: {text}',
                **TOLERANCE,
            )
            if value.is_floating_point():
                moved = max(moved, (value - start[name]).abs().max().item())
        for place, state in wanted['optimizer']['state'].items():
            torch.testing.assert_close(
                found['optimizer']['state'][place], state, **TOLERANCE
            )
    assert moved > 1000 * TOLERANCE['atol']


@pytest.mark.parametrize('stage', [2, 3])
def test_keys_of_deepspeed(stage):
    """It is not installed: they are compared with what MMEngine takes."""
    cfg = Config.fromfile(CONFIGS / f'_base_/strategies/zero{stage}.py')
    known = inspect.signature(DeepSpeedStrategy.__init__).parameters
    assert set(cfg.strategy) - {'type'} <= set(known)
    assert cfg.strategy.zero_optimization.stage == stage
