# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Two processes that share the weights train as one does."""

import inspect
import re

import mmengine
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

from transmamba_mm.datasets.toy_vqa import make_toy_vqa
from transmamba_mm.engine.full_shard import sharded_units
from transmamba_mm.models import VMamba
from transmamba_mm.registry import MODELS

# Subcloning, a teacher, activation checkpointing, accumulated gradients.
PLAIN = """
_base_ = ['{path}/quickstart/transmamba_deit_pmamba_digits{suffix}.py']
model = dict(
    teacher_ckpt='teacher.pth',{more}
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
# The paper's stage two, and one that begins with single mixers.
RECIPES = dict(
    paper=dict(suffix='_paper', more=''),
    mixers=dict(suffix='', more='distiller={{_base_.transmamba.distiller}},'),
)
TOLERANCE = dict(rtol=1e-4, atol=2e-6)


@pytest.mark.skipif(get_device() != 'cpu', reason='compares runs on the CPU')
@pytest.mark.parametrize('recipe', RECIPES)
def test_a_shared_model_trains_as_a_whole_one(recipe, tmp_path, monkeypatch):
    text = PLAIN.format(path=CONFIGS, **RECIPES[recipe])
    (tmp_path / 'plain.py').write_text(text)
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
    # A checkpoint of two is resumed by one, and by two.
    resume = ['--resume', 'two/epoch_1.pth']
    options = [*arguments('shared', 'resumed two', 16), *resume]
    options += ['--launcher', 'pytorch']
    run = ForkedTool(tmp_path, 'train', *options, ranks=2)
    try:
        run_tool_here(
            monkeypatch, 'train', *arguments('plain', 'resumed', 32), *resume
        )
    finally:
        run.wait()
    states = {
        name: torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False)
        for name in ('one', 'two', 'resumed', 'resumed two')
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

    # And tested by both.
    def testing(config, out):
        name = ['--out', out, '--cfg-options', own_name()]
        return [f'{config}.py', 'two/epoch_2.pth', *name]

    shared = [*testing('shared', 'two.pkl'), '--launcher', 'pytorch']
    run = ForkedTool(tmp_path, 'test', *shared, ranks=2)
    try:
        run_tool_here(monkeypatch, 'test', *testing('plain', 'one.pkl'))
    finally:
        run.wait()
    scores = [
        torch.stack([x['pred_score'] for x in mmengine.load(file)])
        for file in ('one.pkl', 'two.pkl')
    ]
    torch.testing.assert_close(*scores, **TOLERANCE)
    assert scores[0].std(0).max() > 1000 * TOLERANCE['atol']


# A language model that answers questions, in mixed precision.
ANSWERS = """
_base_ = [
    '{path}/quickstart/transmamba_llava_transmamba-lm_toy-vqa.py',
    '{path}/_base_/strategies/full_shard.py']
model = dict(teacher_ckpt='teacher.pth')
train_dataloader = dict(batch_size=4)
val_dataloader = dict(batch_size=6)
default_hooks = dict(logger=dict(interval=1))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=2), _base_.param_scheduler[1]]
train_cfg = dict(max_epochs=2, val_interval=2)
"""


@pytest.mark.skipif(get_device() != 'cpu', reason='gloo')
def test_a_shared_language_model_answers(tmp_path, monkeypatch, capsys):
    """The mixers' turn, all losses, then decoding with a state."""
    pytest.importorskip('transformers')
    (tmp_path / 'answers.py').write_text(ANSWERS.format(path=CONFIGS))
    teacher = Config.fromfile(CONFIGS / '_base_/teachers/llava_toy.py').teacher
    torch.save(MODELS.build(teacher).state_dict(), tmp_path / 'teacher.pth')
    make_toy_vqa(tmp_path / 'data/toy_vqa', 160, 12)
    monkeypatch.chdir(tmp_path)
    options = ['answers.py', '--work-dir', 'run', '--launcher', 'pytorch']
    log = ForkedTool(tmp_path, 'train', *options, ranks=2).wait()
    for name in ('mixer', 'hidden', 'kl'):
        assert re.search(rf'distill\.loss_{name}: \d', log), name
    assert 'vqa/num_questions: 12' in log
    run_tool_here(monkeypatch, 'export_student', 'run/epoch_2.pth')
    options = ['run/epoch_2_student.py', 'run/epoch_2_student.pth']
    run_tool_here(monkeypatch, 'test', *options, '--work-dir', 'exported')
    assert 'vqa/num_questions: 12' in capsys.readouterr().out


ZERO = """
_base_ = ['plain.py', '{path}/_base_/strategies/zero{stage}.py']
strategy = dict(
    bf16=dict(enabled=False),
    inputs_to_half=None,
    gradient_clipping=5.0,
    # SGD, on a CPU.
    config=dict(
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False))
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    optimizer=dict(
        type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01),
    constructor='transmamba.MergedGroupsOptimWrapperConstructor')
"""


@pytest.mark.skipif(get_device() != 'cpu', reason='compares runs on the CPU')
@pytest.mark.parametrize('stage', [2, 3])
def test_zero_trains_as_one_process(stage, tmp_path, monkeypatch):
    pytest.importorskip('deepspeed', reason='no DeepSpeed (older than 0.19)')
    from deepspeed.utils.zero_to_fp32 import (
        get_fp32_state_dict_from_zero_checkpoint as whole_weights,
    )

    monkeypatch.setenv('DS_ACCELERATOR', 'cpu')
    text = PLAIN.format(path=CONFIGS, suffix='', more='')
    text = text.replace('accumulative_counts=5', 'accumulative_counts=1')
    (tmp_path / 'plain.py').write_text(text)
    text = ZERO.format(path=CONFIGS, stage=stage)
    (tmp_path / 'zero.py').write_text(text)
    teacher = Config.fromfile(CONFIGS / '_base_/models/deit_digits.py').teacher
    teacher = dict(teacher, type='mmpretrain.ImageClassifier')
    save_teacher(tmp_path / 'teacher.pth', teacher)
    monkeypatch.chdir(tmp_path)

    def arguments(config, batch):
        batch = f'train_dataloader.batch_size={batch}'
        work_dir = ['--work-dir', config, '--no-validate']
        return [f'{config}.py', *work_dir, '--cfg-options', batch, own_name()]

    options = [*arguments('zero', 16), '--launcher', 'pytorch']
    run = ForkedTool(tmp_path, 'train', *options, ranks=2)
    try:
        run_tool_here(monkeypatch, 'train', *arguments('plain', 32))
    finally:
        run.wait()
    found = whole_weights('zero', 'epoch_2.pth')
    wanted = torch.load('plain/epoch_2.pth', weights_only=False)['state_dict']
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **TOLERANCE)


@pytest.mark.parametrize('stage', [2, 3])
def test_keys_of_deepspeed(stage):
    """Where it is not installed, as MMEngine takes them."""
    cfg = Config.fromfile(CONFIGS / f'_base_/strategies/zero{stage}.py')
    known = inspect.signature(DeepSpeedStrategy.__init__).parameters
    assert set(cfg.strategy) - {'type'} <= set(known)
    assert cfg.strategy.zero_optimization.stage == stage


def test_blocks_in_stages_are_gathered_by_themselves():
    """A stage that is gathered as a whole could not lend one mixer."""
    net = VMamba(dict(embed_dims=8, depths=[1, 2], d_state=1))
    units = sharded_units(net)
    for block in net.blocks():
        place = units.index(block)
        stage = next(x for x in net.layers if block in x.modules())
        assert place < units.index(stage)
