# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A run that is killed at any moment and resumed ends with equal weights."""

import random
import signal
import time

import pytest
import torch
from helpers import (
    CONFIGS,
    ForkedTool,
    own_name,
    run_tool_here,
    save_teacher,
)
from mmengine.config import Config
from mmengine.device import get_device

pytestmark = pytest.mark.skipif(
    get_device() != 'cpu', reason='bit-equality is a promise for the CPU'
)
EPOCHS = 4
KILL_AFTER = (1, 2)  # epochs, and a moment more
PATIENCE = 120  # seconds until the first checkpoint of the killed run

PLAIN = """
_base_ = ['QUICKSTART/transmamba_deit_pmamba_digits_paper.py']
model = dict(distiller=dict(methods=[
    dict(type='transmamba.AdaptiveBidirectional'),
    dict(type='transmamba.LogitsKD'),
]))
train_dataloader = dict(dataset=dict(fraction=0.1))
"""
# All that is random, drawn in workers and in the main process.
RANDOM = """
_base_ = ['QUICKSTART/transmamba_deit_pmamba_digits_paper.py']
model = dict(
    architecture=dict(
        backbone=dict(drop_rate=0.2, drop_path_rate=0.3),
        head=dict(loss=dict(use_soft=True)),
        train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)])),
    teacher=dict(backbone=dict(drop_rate=0.1, drop_path_rate=0.2)))
train_dataloader = dict(
    num_workers=2,
    worker_init_fn=dict(type='transmamba.seed_worker'),
    dataset=dict(fraction=0.1))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a random teacher where the configs expect it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'work_dirs' / 'deit_digits'
    folder.mkdir(parents=True)
    teacher = Config.fromfile(CONFIGS / '_base_/models/deit_digits.py').teacher
    teacher = dict(teacher, type='mmpretrain.ImageClassifier')
    save_teacher(folder / 'epoch_60.pth', teacher)
    return tmp_path


def arguments(work_dir, *more):
    return [
        'config.py',
        '--work-dir',
        work_dir,
        '--no-validate',
        *more,
        '--cfg-options',
        f'train_cfg.max_epochs={EPOCHS}',
        own_name(),
    ]


def kill_in_the_middle(project, work_dir):
    """Starts a run, kills it after some epochs; returns when."""
    run = ForkedTool(project, 'train', *arguments(work_dir))
    (process,) = run.processes
    chance = random.SystemRandom()
    epoch, pause = chance.choice(KILL_AFTER), chance.uniform(0, 0.15)
    try:
        first = project / work_dir / f'epoch_{epoch}.pth'
        end = time.monotonic() + PATIENCE
        while not first.exists() and process.is_alive():
            assert time.monotonic() < end, 'the run does not start'
            time.sleep(0.01)
        time.sleep(pause)
    finally:
        run.kill()
    assert process.exitcode == -signal.SIGKILL
    return f'killed {pause:.3f} s after epoch {epoch}'


def assert_same(a, b, path=''):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f'{path}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f'{path}.{i}')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


@pytest.mark.parametrize('text', [PLAIN, RANDOM], ids=['plain', 'random'])
def test_killed_and_resumed(text, project, monkeypatch):
    text = text.replace('QUICKSTART', str(CONFIGS / 'quickstart'))
    (project / 'config.py').write_text(text)
    moment = kill_in_the_middle(project, 'killed')
    last = f'epoch_{EPOCHS}.pth'
    assert not (project / 'killed' / last).exists()
    run_tool_here(monkeypatch, 'train', *arguments('killed', '--resume'))
    run_tool_here(monkeypatch, 'train', *arguments('whole'))
    found = torch.load(project / 'killed' / last)
    wanted = torch.load(project / 'whole' / last)
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(found[key], wanted[key], f'{moment}: {key}')
    assert found['meta']['iter'] == wanted['meta']['iter'] > EPOCHS


def test_the_comparison_can_fail(project, monkeypatch):
    """Without EpochSeedHook the draws, hence the weights, differ."""
    text = RANDOM.replace('QUICKSTART', str(CONFIGS / 'quickstart'))
    (project / 'config.py').write_text(text)
    states = []
    for more in ([], ['default_hooks.epoch_seed.type=IterTimerHook']):
        name = f'run{len(more)}'
        run_tool_here(
            monkeypatch,
            'train',
            *arguments(name),
            'train_cfg.max_epochs=1',
            'train_dataloader.num_workers=0',
            *more,
        )
        states.append(torch.load(project / name / 'epoch_1.pth')['state_dict'])
    with pytest.raises(AssertionError):
        assert_same(*states)
