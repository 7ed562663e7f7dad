# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Errors of whatever origin become one line that names the setting."""

import copy
import uuid

import numpy as np
import pytest
import torch
from helpers import (
    TinyPictures,
    build,
    save_teacher,
    tiny_distiller,
    tiny_runner,
    tiny_student,
    tiny_teacher,
)
from mmengine.config import Config
from mmengine.hooks import Hook
from PIL import Image

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.registry import DATASETS, HOOKS
from transmamba_mm.utils import cli, loading, mistakes


@DATASETS.register_module(force=True)
class Pictures(TinyPictures):
    """Tiny pictures for a config."""


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A config of a whole distillation."""
    folder = tmp_path_factory.mktemp('base')
    return dict(
        model=dict(
            type='transmamba.TransMambaDistill',
            architecture=tiny_student(),
            teacher=tiny_teacher(),
            distiller=tiny_distiller(),
            teacher_ckpt=save_teacher(folder / 'teacher.pth'),
        ),
        work_dir=str(folder / 'run'),
        train_dataloader=dict(
            dataset=dict(type='transmamba.Pictures'),
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
        param_scheduler=[dict(type='LinearLR', end=1)],
        default_scope='mmpretrain',
        custom_hooks=[dict(type='transmamba.PreCheckHook')],
    )


def run(base, *changes, level='INFO'):
    cfg = Config(copy.deepcopy(base))
    for key, value in changes:
        *path, last = key.split('.')
        part = cfg
        for each in path:
            part = part[int(each)] if each.isdigit() else part[each]
        if value is KeyError:
            del part[last]
        else:
            part[last] = value
    cfg.log_level = level
    cfg.experiment_name = uuid.uuid4().hex
    mistakes.train(cli.build_runner(cfg))


HEAD = 'model.architecture.head'
SAFE = 'transmamba.SafeCheckpointHook'
DISTILLER = 'model.distiller'
MISTAKES = [
    (HEAD + '.in_channels', 7, f'{HEAD}={{', "'in_channels': 7", '(4, 12)'),
    (HEAD + '.type', 'LinearHead', f'{HEAD}={{', 'LinearHead'),
    (
        DISTILLER + '.student_recorders.taps.type',
        KeyError,
        f'{DISTILLER}.student_recorders.taps={{}}',
        'type',
    ),
    (
        DISTILLER + '.connectors.calibration',
        {},
        f'{DISTILLER}.connectors.calibration={{}}',
        '"type"',
    ),
    (
        DISTILLER + '.teacher_recorders.tokens.source',
        '(unbalanced',
        f'{DISTILLER}={{',
        "source '(unbalanced' is no regular expression",
    ),
    (
        DISTILLER + '.distill_losses.loss_tm.teacher_layers',
        None,
        f'{DISTILLER}.distill_losses.loss_tm={{',
        "must be 'last', 'uniform' or a list of integers, got None",
    ),
    ('optim_wrapper.optimizer.lr', -1, 'optim_wrapper.optimizer={', '-1'),
    ('param_scheduler.0.type', 'Linear', 'param_scheduler.0={', "'Linear'"),
    ('train_dataloader.batch_size', 'a', 'batch_size'),
    (
        'default_hooks',
        dict(checkpoint=dict(type=SAFE, interval='an epoch')),
        'default_hooks.checkpoint={',
        "interval must be an integer, got 'an epoch'",
    ),
    (
        'default_hooks',
        dict(checkpoint=dict(type=SAFE, max_keep_cktps=1)),
        'default_hooks.checkpoint={',
        "there is no option 'max_keep_cktps'",
    ),
    ('train_cfg.max_epochs', 0, 'train_cfg.max_epochs must be positive'),
]


@pytest.mark.parametrize('mistake', MISTAKES, ids=lambda m: m[0])
def test_one_line_with_the_setting(base, mistake):
    key, value, *parts = mistake
    with pytest.raises(mistakes.UsageError) as caught:
        run(base, (key, value))
    text = str(caught.value)
    assert '\n' not in text
    assert len(text) < 1200
    for part in parts:
        assert part in text


def test_a_developer_sees_the_traceback(base):
    with pytest.raises(RuntimeError, match='mat1 and mat2'):
        run(base, (HEAD + '.in_channels', 7), level='DEBUG')


@HOOKS.register_module(force=True)
class Late(Hook):
    """Fails in the second step, with what is no mistake of the config."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1:
            raise KeyError('late')


def test_what_goes_wrong_later_keeps_its_traceback(base):
    with pytest.raises(KeyError, match='late'):
        run(base, ('custom_hooks', [dict(type='transmamba.Late')]))


@HOOKS.register_module(force=True)
class WrongState(Hook):
    """As a checkpoint may hold it."""

    def before_train(self, runner):
        optimizer = runner.optim_wrapper.optimizer
        for parameter in optimizer.param_groups[0]['params']:
            optimizer.state[parameter]['momentum_buffer'] = torch.ones(7, 7)


def test_a_first_step_after_several_iterations_is_explained(base):
    wrapper = dict(base['optim_wrapper'], accumulative_counts=2)
    wrapper['optimizer'] = dict(type='SGD', lr=0.05, momentum=0.9)
    changes = [
        ('optim_wrapper', wrapper),
        ('custom_hooks', [dict(type='transmamba.WrongState')]),
    ]
    with pytest.raises(mistakes.UsageError, match=r'size of tensor') as error:
        run(base, *changes)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.alpha': float('nan')}, 'model.alpha is NaN'),
        ({'model.heads': [dict(loss_weight=-1)]}, 'model.heads.0.loss_weight'),
        ({'model.list.5': 3}, '--cfg-options: '),
        ({'default_hooks.timer': -1}, 'default_hooks.timer must be a dict'),
        ({'env_cfg': 5}, 'env_cfg must be a dict, got 5'),
        ({'val_dataloader': True}, 'val_dataloader must be a dict'),
    ],
)
def test_values_of_a_config(tmp_path, options, message):
    (tmp_path / 'config.py').write_text('model = dict(type="A", list=[1])\n')
    args = cli.argparse.Namespace(
        config=str(tmp_path / 'config.py'), cfg_options=options
    )
    with pytest.raises(mistakes.UsageError) as caught:
        cli.load_config(args)
    assert message in str(caught.value)


@pytest.mark.parametrize('text', ['model = dict(', '_base_ = "gone.py"\n'])
def test_configs_that_cannot_be_read(tmp_path, text):
    (tmp_path / 'config.py').write_text(text)
    args = cli.argparse.Namespace(
        config=str(tmp_path / 'config.py'), cfg_options=None
    )
    with pytest.raises(mistakes.UsageError, match=r"config '.*config.py': "):
        cli.load_config(args)


@pytest.mark.parametrize(
    'content',
    [
        {},
        dict(state_dict={}),
        dict(state_dict={'decoder.weight': torch.ones(2)}, meta={}),
        dict(model={}),
    ],
    ids=['nothing', 'empty', 'another', 'empty model'],
)
@pytest.mark.parametrize('ema', [False, True])
def test_a_file_without_a_weight_of_the_model(tmp_path, content, ema):
    torch.save(content, tmp_path / 'file.pth')
    hooks = [dict(type='transmamba.BareFileHook')]
    hooks += [dict(type='EMAHook')] if ema else []
    runner = tiny_runner(
        tmp_path / 'run',
        tiny_teacher(),
        load_from=str(tmp_path / 'file.pth'),
        custom_hooks=hooks,
    )
    loading.check_loading(runner, strict=False)
    with pytest.raises((mistakes.UsageError, CheckpointError)) as caught:
        mistakes.train(runner)
    assert 'file.pth' in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.glob('run/*.pth'))


@pytest.mark.parametrize(
    ('trained', 'message'),
    [('abc', "superfluous: 'x'"), ('xab', 'in another order'), (None, '')],
)
def test_test_data_of_other_classes(tmp_path, trained, message):
    for name in 'abx':
        (tmp_path / 'data' / name).mkdir(parents=True)
        pixels = np.zeros((16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'data' / name / '0.png')
    meta = dict(dataset_meta=dict(classes=tuple(trained))) if trained else {}
    state = build(tiny_teacher()).state_dict()
    torch.save(dict(meta=meta, state_dict=state), tmp_path / 'a.pth')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_prefix=str(tmp_path / 'data'))
    runner = tiny_runner(
        tmp_path / 'run',
        tiny_teacher(),
        load_from=str(tmp_path / 'a.pth'),
        test_dataloader=dict(
            dataset=dict(dataset, pipeline=pipeline),
            batch_size=3,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'),
    )
    loading.check_loading(runner, strict=True)
    if trained is None:
        assert 'accuracy/top1' in runner.test()
        return
    with pytest.raises(mistakes.UsageError) as caught:
        runner.test()
    assert message in str(caught.value)
    assert str(tmp_path / 'data') in str(caught.value)
