# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""tools/train.py, tools/test.py and their launchers, on a toy data set."""

import json
import pickle
import re
import runpy
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import TOOLS, ForkedTool, tool_env
from mmengine.device import get_device
from PIL import Image

CONFIG = """
custom_imports = dict(imports=['transmamba_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=2, mean=[128] * 3, std=[64] * 3),
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=8, num_layers=1, num_heads=2,
                  feedforward_channels=16),
        img_size=16, patch_size=8),
    head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=8))
_loader = dict(
    batch_size=4, num_workers=0,
    dataset=dict(
        type='CustomDataset', data_prefix='DATA',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=True), **_loader)
test_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=False), **_loader)
val_dataloader = test_dataloader
test_evaluator = val_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer',
                  vis_backends=[dict(type='LocalVisBackend')])
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with a config, eight pictures and a first checkpoint."""
    root = tmp_path_factory.mktemp('project')
    generator = np.random.default_rng(0)
    for i in range(8):
        folder = root / 'data' / 'ab'[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    config = CONFIG.replace('DATA', str(root / 'data'))
    (root / 'toy.py').write_text(config)
    out = run_tool(root, 'train', 'toy.py', '--amp', '--auto-scale-lr')
    (root / 'first.log').write_text(out)
    return root


def run_tool(root, tool, *args, fails=False):
    return ForkedTool(root, tool, *args).wait(fails)


def test_train_with_amp(project):
    log = (project / 'first.log').read_text()
    assert 'Epoch(train) [1][2/2]' in log
    assert 'accuracy/top1' in log
    assert (project / 'work_dirs/toy/epoch_1.pth').exists()
    if get_device() == 'cpu':
        assert "type='transmamba.CpuAmpOptimWrapper'" in log


def test_resume_and_no_validate(project):
    log = run_tool(
        project,
        'train',
        'toy.py',
        '--resume',
        'work_dirs/toy/epoch_1.pth',
        '--no-validate',
        '--work-dir',
        'resumed',
        '--cfg-options',
        'train_cfg.max_epochs=2',
    )
    assert 'resumed epoch: 1, iter: 2' in log
    assert 'Epoch(val)' not in log
    assert (project / 'resumed/epoch_2.pth').exists()


@pytest.mark.skipif(get_device() != 'cpu', reason='one GPU')
def test_two_processes_evaluate_as_one_does_what_does_not_divide(project):
    """Seven images in batches of three: none counts twice, none is lost."""
    options = ['--cfg-options', 'test_dataloader.batch_size=3']
    options += ['test_dataloader.dataset.indices=[0,1,2,3,4,5,7]']
    found = []
    for launch, ranks in ((), 0), (('--launcher', 'pytorch'), 2):
        args = ['toy.py', 'work_dirs/toy/epoch_1.pth', *launch, *options]
        args += ['--out', f'shards{ranks}.pkl']
        log = ForkedTool(project, 'test', *args, ranks=ranks).wait()
        (accuracy,) = set(re.findall(r'accuracy/top1: ([\d.]+)', log))
        saved = pickle.loads((project / args[-1]).read_bytes())
        found.append((accuracy, saved))
    assert found[0][0] == found[1][0]
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert one['sample_idx'] == two['sample_idx']
        assert one['pred_score'].equal(two['pred_score'])


def test_predictions_with_tta(project):
    checkpoint = 'work_dirs/toy/epoch_1.pth'
    run_tool(
        project, 'test', 'toy.py', checkpoint, '--tta', '--out', 'pred.pkl'
    )
    predictions = pickle.loads((project / 'pred.pkl').read_bytes())
    assert len(predictions) == 8
    assert len(predictions[0]['pred_score']) == 2


def test_metrics_and_pictures_with_amp(project):
    run_tool(
        project,
        'test',
        'toy.py',
        'work_dirs/toy/epoch_1.pth',
        '--amp',
        '--out',
        'metrics.json',
        '--out-item',
        'metrics',
        '--show-dir',
        'shown',
        '--interval',
        '4',
    )
    metrics = json.loads((project / 'metrics.json').read_text())
    assert 0 <= metrics['accuracy/top1'] <= 100
    assert len(list(project.glob('**/shown/**/*.png'))) == 2


@pytest.mark.skipif(get_device() != 'cpu', reason='for machines without GPU')
def test_two_processes_without_a_gpu(project, monkeypatch):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        monkeypatch.setenv('PORT', str(probe.getsockname()[1]))
    command = ['bash', TOOLS / 'dist_train.sh', 'toy.py', '2']
    log = subprocess.check_output(
        [*command, '--work-dir', 'two'],
        cwd=project,
        env=dict(tool_env(), PYTHON=sys.executable),
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Each of the two processes sees half of the eight pictures.
    assert 'Epoch(train) [1][1/1]' in log
    assert re.search(r'Distributed training: True', log)
    assert (project / 'two/epoch_1.pth').exists()


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('train', ['gone.py'], "config file 'gone.py' does not exist"),
        ('train', ['toy.py', '--resume', 'gone.pth'], "'gone.pth' does not"),
        (
            'train',
            ['toy.py', '--cfg-options', 'trian_cfg.max_epochs=3'],
            "'trian_cfg' (did you mean 'train_cfg'?)",
        ),
        ('test', ['toy.py', 'gone.pth'], "checkpoint 'gone.pth' does not"),
        (
            'test',
            ['toy.py', 'toy.py', '--cfg-options', 'test_cfg=None'],
            'the config has no test_cfg',
        ),
    ],
)
def test_mistakes_are_named_in_one_line(
    project, monkeypatch, capsys, tool, args, message
):
    """Before anything is built; in this process, to be quick."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, 'argv', [tool, *args])
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('test', ['toy.py', 'toy.py'], "'toy.py' cannot be read: it is da"),
        (
            'train',
            ['toy.py', '--cfg-options', 'load_from=toy.py'],
            "checkpoint 'toy.py' cannot be read: it is damaged",
        ),
        (
            'test',
            [
                *('toy.py', 'work_dirs/toy/epoch_1.pth', '--cfg-options'),
                'model.head.num_classes=3',
            ],
            "'work_dirs/toy/epoch_1.pth' is of another model.",
        ),
    ],
)
def test_checkpoints_that_do_not_load(project, tool, args, message):
    """No score is told of weights that were not loaded."""
    log = run_tool(project, tool, *args, fails=True)
    assert f'error: checkpoint {message}' in log or f'error: {message}' in log
    assert 'Traceback' not in log
    assert 'accuracy/top1' not in log


def test_print_config(project, monkeypatch, capsys):
    options = ['--cfg-options', 'train_cfg.max_epochs=7']
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, 'argv', ['print_config', 'toy.py', *options])
    path = TOOLS / 'misc' / 'print_config.py'
    runpy.run_path(str(path), run_name='__main__')
    assert 'max_epochs=7' in capsys.readouterr().out
