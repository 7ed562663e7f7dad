# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A teacher cache that two processes fill, through tools/train.py."""

import json

import pytest
from helpers import (
    CONFIGS,
    ForkedTool,
    own_name,
    run_tool_here,
    save_teacher,
)
from mmengine.config import Config
from mmengine.device import get_device

CACHED = f"""
_base_ = ['{CONFIGS}/quickstart/transmamba_deit_pmamba_digits_cached.py']
custom_imports = dict(imports=['transmamba_mm', 'count_images'])
train_dataloader = dict(
    batch_size=8, dataset=dict(num_views=1, dataset=dict(fraction=0.05)))
train_cfg = dict(max_epochs=3)
default_hooks = dict(logger=dict(interval=1))
custom_hooks = [*_base_.custom_hooks, dict(type='CountImages')]
"""
PLAIN = """
_base_ = ['cached.py']
custom_hooks = [_base_.custom_hooks[0], dict(type='CountImages')]
"""
COUNT_IMAGES = """
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class CountImages(Hook):
    '''Writes down how many images each rank's teacher has seen.'''

    def before_train(self, runner):
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        self.images = 0
        model.teacher.register_forward_pre_hook(self.count)

    def count(self, module, inputs):
        self.images += len(inputs[0])

    def after_train(self, runner):
        path = Path(runner.work_dir, f'images{get_rank()}')
        path.write_text(str(self.images))
"""

pytestmark = pytest.mark.skipif(
    get_device() != 'cpu', reason='compares runs on the CPU'
)


def losses(folder):
    (path,) = folder.glob('*/vis_data/scalars.json')
    lines = map(json.loads, path.read_text().splitlines())
    return [x['loss'] for x in lines if 'loss' in x]


def test_two_processes_fill_what_one_reads(tmp_path, monkeypatch):
    for name, text in (
        ('cached.py', CACHED),
        ('plain.py', PLAIN),
        ('count_images.py', COUNT_IMAGES),
    ):
        (tmp_path / name).write_text(text)
    folder = tmp_path / 'work_dirs' / 'deit_digits'
    folder.mkdir(parents=True)
    teacher = Config.fromfile(CONFIGS / '_base_/models/deit_digits.py').teacher
    teacher = dict(teacher, type='mmpretrain.ImageClassifier')
    save_teacher(folder / 'epoch_60.pth', teacher)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def arguments(config):
        work_dir = ['--work-dir', config, '--no-validate']
        return [f'{config}.py', *work_dir, '--cfg-options', own_name()]

    for config in ('plain', 'cached'):
        options = [*arguments(config), '--launcher', 'pytorch']
        output = ForkedTool(tmp_path, 'train', *options, ranks=2).wait()
    assert 'bytes per image' in output
    plain, cached = (losses(tmp_path / x) for x in ('plain', 'cached'))
    assert len(plain) == 3 * 5
    assert cached[:5] == plain[:5]
    # Later batches are other ones of the same images.
    assert cached == pytest.approx(plain, rel=1e-4)
    run_tool_here(monkeypatch, 'train', *arguments('cached'))
    assert (tmp_path / 'cached' / 'images0').read_text() == '0'
