# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Methods that take turns, and phases, through tools/train.py."""

import json
import math
import re

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
    get_device() != 'cpu', reason='compares runs on the CPU'
)
EPOCHS = 4  # of two steps; the first phase is half of them
BIT_BY_BIT = dict(rtol=0, atol=0)
# Sums in another order, over eight steps.
ROUNDING = dict(rtol=1e-4, atol=2e-6)
MIXER = re.compile(r'architecture\.backbone\.layers\.\d\.(norm|mamba)\..+')
EARLY = {'distill.loss_mixer'}
LATE = {'student.loss', 'distill.loss_hidden', 'distill.loss_kl'}

CONFIG = f"""
_base_ = ['{CONFIGS}/quickstart/transmamba_deit_pmamba_digits_paper.py']
model = dict(
    architecture=dict(backbone=dict(drop_path_rate=0.2)),
    distiller=dict(
        methods=[
            dict(type='transmamba.MixerMatching', end=0.5),
            dict(type='transmamba.HiddenStates', begin=0.5),
            dict(type='transmamba.LogitsKD', begin=0.5),
        ],
        phases=[dict(end=0.5, trains='mixers', task_loss=False)]))
train_dataloader = dict(dataset=dict(fraction=0.04))
train_cfg = dict(max_epochs={EPOCHS})
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=-1),
    logger=dict(interval=1),
    distill_monitor=dict(interval=1))
log_processor = dict(window_size=1)
"""
# Nothing random, and an optimizer that does not blow rounding up.
PARALLEL = """
_base_ = ['./config.py']
model = dict(architecture=dict(backbone=dict(drop_path_rate=0.0)))
train_dataloader = dict(
    dataset=dict(dataset=dict(pipeline={{_base_.test_pipeline}})))
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01))
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with the configs and a random teacher where they expect it."""
    root = tmp_path_factory.mktemp('methods')
    (root / 'config.py').write_text(CONFIG)
    (root / 'parallel.py').write_text(PARALLEL)
    folder = root / 'work_dirs' / 'deit_digits'
    folder.mkdir(parents=True)
    teacher = Config.fromfile(CONFIGS / '_base_/models/deit_digits.py').teacher
    teacher = dict(teacher, type='mmpretrain.ImageClassifier')
    save_teacher(folder / 'epoch_60.pth', teacher)
    return root


def arguments(work_dir, *more, config='config', options=()):
    return [
        f'{config}.py',
        '--work-dir',
        work_dir,
        '--no-validate',
        *more,
        '--cfg-options',
        own_name(),
        *options,
    ]


@pytest.fixture(scope='module', autouse=True)
def started(project):
    """Two processes, which train while the first tests run."""
    half = ['train_dataloader.batch_size=16']
    options = arguments('two', config='parallel', options=half)
    run = ForkedTool(
        project, 'train', *options, '--launcher', 'pytorch', ranks=2
    )
    yield run
    run.kill()


class Run:
    """What a run leaves behind."""

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, epoch):
        return torch.load(self.folder / f'epoch_{epoch}.pth')

    @property
    def lines(self):
        """Losses of each step."""
        (path,) = self.folder.glob('*/vis_data/scalars.json')
        lines = map(json.loads, path.read_text().splitlines())
        return [
            {k: v for k, v in line.items() if 'loss' in k}
            for line in lines
            if 'loss' in line
        ]


@pytest.fixture(scope='module')
def train(project):
    """Trains in this process."""

    def train_here(work_dir, *args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(project)
            run_tool_here(
                patch, 'train', *arguments(work_dir, *args, **kwargs)
            )
        return Run(project / work_dir)

    return train_here


@pytest.fixture(scope='module')
def whole(train):
    """A run that nothing interrupts."""
    return train('whole')


@pytest.fixture(scope='module')
def processes(project, started, train):
    """The same training in one process and in two."""
    one = train('one', config='parallel')
    started.wait()
    return one, Run(project / 'two')


def test_losses_take_turns(whole):
    names = [set(line) - {'loss'} for line in whole.lines]
    assert names == [EARLY] * EPOCHS + [LATE] * EPOCHS


@pytest.mark.parametrize('epoch', [1, 2, 3], ids='after epoch {}'.format)
def test_a_run_goes_on_where_it_stopped(train, whole, epoch):
    """Inside of the first phase, at its end, and later."""
    path = whole.folder / f'epoch_{epoch}.pth'
    resumed = train(f'resumed{epoch}', '--resume', path)
    assert not (resumed.folder / f'epoch_{epoch}.pth').exists()
    found, wanted = resumed[EPOCHS], whole[EPOCHS]
    assert found['param_schedulers'] == wanted['param_schedulers']
    for state in ('state_dict', 'optimizer'):
        tensors = (x[state].get('state', x[state]) for x in (found, wanted))
        torch.testing.assert_close(*tensors, **BIT_BY_BIT)
    assert resumed.lines == whole.lines[2 * epoch :]


def test_mixed_precision_is_close(train, whole):
    rough = train('amp', '--amp').lines
    assert len(rough) == len(whole.lines)
    for found, wanted in zip(rough, whole.lines):
        assert found.keys() == wanted.keys()
        assert all(map(math.isfinite, found.values()))
        assert found == pytest.approx(wanted, rel=0.1, abs=0.02)
    assert rough[0] != whole.lines[0]


def test_computing_activations_again_changes_nothing(train, whole):
    option = 'model.architecture.backbone.with_cp=True'
    again = train('with_cp', options=[option])
    for found, wanted in zip(again.lines, whole.lines):
        assert found == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(
        again[EPOCHS // 2]['state_dict'],
        whole[EPOCHS // 2]['state_dict'],
        **ROUNDING,
    )


def test_two_processes_equal_one(processes):
    one, two = processes
    # At the end of each phase.
    for epoch in (EPOCHS // 2, EPOCHS):
        torch.testing.assert_close(
            two[epoch]['state_dict'], one[epoch]['state_dict'], **ROUNDING
        )
    start, end = (one[epoch]['state_dict'] for epoch in (1, EPOCHS))
    key = 'architecture.backbone.layers.0.ffn.layers.0.0.weight'
    assert (start[key] - end[key]).abs().max() > 100 * ROUNDING['atol']
    names = [set(line) - {'distill.loss_idle'} for line in two.lines]
    assert names == list(map(set, one.lines))


def moved(run, epoch):
    """Names of the student's parameters that moved in an epoch."""
    before, after = run[epoch - 1]['state_dict'], run[epoch]['state_dict']
    names = {x for x in before if x.startswith('architecture.')}
    found = {x for x in names if not before[x].equal(after[x])}
    return found, names


@pytest.mark.parametrize('kind', ['whole', 'one', 'two'])
def test_mixers_train_first_and_everything_afterwards(kind, request):
    if kind == 'whole':
        run = request.getfixturevalue('whole')
    else:
        run = request.getfixturevalue('processes')[kind == 'two']
    found, names = moved(run, 2)
    mixers = {x for x in names if MIXER.fullmatch(x)}
    assert found <= mixers
    # SGD may move one by less than it can tell.
    assert len(found) > 0.9 * len(mixers)
    found, names = moved(run, 3)
    assert len(found - mixers) > 0.9 * len(names - mixers)
