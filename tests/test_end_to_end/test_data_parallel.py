# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Two processes train as one does, through tools/train.py."""

import json

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

# Terms of sums in another order, over about ten steps of SGD.
WEIGHT_TOL = dict(rtol=1e-4, atol=2e-6)
SIMILARITY_TOL = dict(rtol=1e-4, atol=1e-5)
GLOBAL_BATCH = 32
STOP_EPOCH = 1
EPOCHS = 2
SHARE = 'gradient_share/mixers/distill.loss_kl'

CONFIG = f"""
_base_ = ['{CONFIGS}/quickstart/transmamba_deit_pmamba_digits_paper.py']
model = dict(distiller=dict(methods=[
    dict(type='transmamba.AdaptiveBidirectional'),
    dict(type='transmamba.LogitsKD'),
]))
custom_imports = dict(imports=['transmamba_mm', 'rank_states'])
# The plan of subcloning is made on every rank.
custom_hooks = [
    dict(type='transmamba.SubcloneInitializer'),
    dict(type='mmrazor.StopDistillHook', stop_epoch={STOP_EPOCH}),
    dict(type='transmamba.GradientShareHook', interval=2),
    dict(type='RankStates'),
]
train_dataloader = dict(
    dataset=dict(
        fraction=0.1, dataset=dict(pipeline={{{{_base_.test_pipeline}}}})))
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01))
train_cfg = dict(max_epochs={EPOCHS})
default_hooks = dict(
    logger=dict(interval=1), distill_monitor=dict(interval=1))
"""
RANK_STATES = """
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class RankStates(Hook):
    '''Saves what each rank has after each epoch.'''

    def after_train_epoch(self, runner):
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        loss = model.distiller.distill_losses['loss_transmamba']
        torch.save(
            dict(
                world=get_world_size(),
                state=model.state_dict(),
                stopped=model.distillation_stopped,
                similarities=loss.similarities,
                weights=loss.weights,
            ),
            f'{runner.work_dir}/rank{get_rank()}_epoch{runner.epoch + 1}.pt',
        )
"""


def arguments(work_dir, world):
    return [
        'config.py',
        '--work-dir',
        work_dir,
        '--no-validate',
        '--cfg-options',
        f'train_dataloader.batch_size={GLOBAL_BATCH // world}',
        own_name(),
    ]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """States of both ranks and of the single process after each epoch."""
    root = tmp_path_factory.mktemp('parallel')
    (root / 'config.py').write_text(CONFIG)
    (root / 'rank_states.py').write_text(RANK_STATES)
    folder = root / 'work_dirs' / 'deit_digits'
    folder.mkdir(parents=True)
    teacher = Config.fromfile(CONFIGS / '_base_/models/deit_digits.py').teacher
    teacher = dict(teacher, type='mmpretrain.ImageClassifier')
    save_teacher(folder / 'epoch_60.pth', teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root))
        options = [*arguments('two', 2), '--launcher', 'pytorch']
        run = ForkedTool(root, 'train', *options, ranks=2)
        try:
            run_tool_here(patch, 'train', *arguments('one', 1))
        finally:
            output = run.wait()

    def load(name):
        return torch.load(root / name)

    def logged(name, what):
        (path,) = root.glob(f'{name}/*/vis_data/scalars.json')
        lines = map(json.loads, path.read_text().splitlines())
        return [x for x in lines if what in x]

    return dict(
        ranks=[load(f'two/rank{rank}_epoch2.pt') for rank in range(2)],
        single=load('one/rank0_epoch2.pt'),
        # Before distillation stops.
        early_ranks=[load(f'two/rank{rank}_epoch1.pt') for rank in range(2)],
        early_single=load('one/rank0_epoch1.pt'),
        two=logged('two', 'loss'),
        one=logged('one', 'loss'),
        shares=[logged(name, SHARE) for name in ('one', 'two')],
        log=output,
    )


pytestmark = pytest.mark.skipif(
    get_device() != 'cpu', reason='compares runs on the CPU'
)


@pytest.mark.parametrize('which', ['early_ranks', 'ranks'])
def test_ranks_have_identical_parameters(runs, which):
    first, second = runs[which]
    assert first['world'] == second['world'] == 2
    assert first['state'].keys() == second['state'].keys()
    for key, value in first['state'].items():
        assert torch.equal(value, second['state'][key]), key


def assert_equal_weights(single, double, prefix=''):
    assert single['world'] == 1
    for key, value in single['state'].items():
        if key.startswith(prefix):
            torch.testing.assert_close(
                double['state'][key],
                value,
                msg=lambda text, key=key: f'{key}: {text}',
                **WEIGHT_TOL,
            )


def test_two_processes_equal_one_with_the_same_global_batch(runs):
    assert_equal_weights(runs['early_single'], runs['early_ranks'][0])


def test_the_same_for_the_student_without_distillation(runs):
    """Idle calibrators get zero gradients in DDP and none elsewhere."""
    assert_equal_weights(runs['single'], runs['ranks'][0], 'architecture.')


def test_training_changed_what_is_compared(runs):
    single = runs['early_single']['state']
    teacher = 'teacher.backbone.layers.0.ffn.layers.0.0.weight'
    student = 'architecture.backbone.layers.0.ffn.layers.0.0.weight'
    # The student started as a copy of the teacher.
    change = (single[student] - single[teacher]).abs().max()
    assert change > 100 * WEIGHT_TOL['atol']


def test_weights_come_from_the_global_batch(runs):
    for kind in ('similarities', 'weights'):
        first, second = (rank[kind] for rank in runs['early_ranks'])
        for name, value in first.items():
            assert torch.equal(value, second[name])
            torch.testing.assert_close(
                value, runs['early_single'][kind][name], **SIMILARITY_TOL
            )


def test_distillation_stops_on_all_ranks(runs):
    for state in (*runs['ranks'], runs['single']):
        assert state['stopped'] is True
    steps = len(runs['one']) // EPOCHS
    assert len(runs['two']) == len(runs['one']) == 2 * steps
    key = 'distill.loss_transmamba'
    for lines in (runs['one'], runs['two']):
        assert all(key in line for line in lines[:steps])
    assert 'Distillation has been stopped!' in runs['log']


def test_gradient_shares_are_those_of_the_global_batch(runs):
    one, two = runs['shares']
    assert len(one) == len(two) > 1
    assert 0 < one[0][SHARE] < 1
    for alone, both in zip(one, two):
        assert both == pytest.approx(alone, rel=1e-3, abs=1e-5)
