# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Every quickstart config through tools/train.py and tools/test.py."""

import json
import math

import pytest
import torch
from helpers import CONFIGS, own_name, run_tool_here

QUICKSTART = CONFIGS / 'quickstart'
TEACHER = QUICKSTART / 'deit_digits.py'
STUDENTS = sorted(
    p.stem for p in QUICKSTART.glob('*_digits*.py') if p != TEACHER
)
SHORT = [
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.distill_monitor.interval=1',
    'default_hooks.logger.interval=1',
]
FEW = 'train_dataloader.dataset.fraction=0.05'
# The share is taken inside of what repeats augmentations.
FEW_INSIDE = 'train_dataloader.dataset.dataset.fraction=0.05'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with a teacher, trained for an epoch, where configs expect it.

    Tests of this module run in it.
    """
    root = tmp_path_factory.mktemp('quickstart')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        options = ['--cfg-options', *SHORT, FEW, own_name()]
        run_tool_here(patch, 'train', TEACHER, *options)
    folder = root / 'work_dirs' / 'deit_digits'
    (folder / 'epoch_1.pth').rename(folder / 'epoch_60.pth')
    return root


@pytest.fixture(autouse=True)
def _inside(project, monkeypatch):
    monkeypatch.chdir(project)


def scalars(folder):
    (path,) = folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_there_are_configs():
    assert len(STUDENTS) >= 5


@pytest.mark.parametrize('name', STUDENTS)
def test_trains_and_tests(name, project, monkeypatch):
    config = QUICKSTART / f'{name}.py'
    few = FEW_INSIDE if name.endswith('_cached') else FEW
    options = ['--cfg-options', *SHORT, few, own_name()]
    run_tool_here(monkeypatch, 'train', config, *options)
    folder = project / 'work_dirs' / name
    lines = scalars(folder)
    losses = [x['loss'] for x in lines if 'loss' in x]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))
    (logged,) = (x['accuracy/top1'] for x in lines if 'accuracy/top1' in x)
    keys = {key for line in lines for key in line}
    paper = name.endswith('_paper')
    ours = name.startswith('transmamba') and not paper
    kl = ours or 'logits-kd' in name
    assert ('distill.loss_transmamba' in keys) == paper
    assert ('distill.loss_kl' in keys) == kl

    checkpoint = folder / 'epoch_1.pth'
    test_options = ['--cfg-options', own_name()]
    if any(key.startswith('distill.') for key in keys):
        state = torch.load(checkpoint)['state_dict']
        teacher = torch.load('work_dirs/deit_digits/epoch_60.pth')
        for key, value in teacher['state_dict'].items():
            assert torch.equal(state[f'teacher.{key}'], value), key
        # The teacher's file is not needed any more.
        test_options.append('model.teacher_ckpt=gone.pth')
    run_tool_here(
        monkeypatch,
        'test',
        config,
        checkpoint,
        '--work-dir',
        f'tested/{name}',
        '--out',
        f'{name}.json',
        '--out-item',
        'metrics',
        *test_options,
    )
    metrics = json.loads((project / f'{name}.json').read_text())
    assert metrics['accuracy/top1'] == logged


# ---------------------------------------------------------------- mistakes


def fail(monkeypatch, capfd, name, *options):
    """Trains with a mistake in the options; returns the line that tells."""
    config = QUICKSTART / f'{name}.py'
    options = [*SHORT, FEW, own_name(), *options]
    with pytest.raises(SystemExit) as end:
        run_tool_here(
            monkeypatch,
            *('train', config, '--work-dir', 'mistakes'),
            *('--cfg-options', *options),
        )
    assert end.value.code == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith('error: ')
    return line


OURS = 'transmamba_deit_pmamba_digits'
PAPER = f'{OURS}_paper'


def test_unknown_key(monkeypatch, capfd):
    message = fail(monkeypatch, capfd, OURS, 'custom_hook=3')
    assert "'custom_hook' (did you mean 'custom_hooks'?)" in message


def test_unknown_preset(monkeypatch, capfd):
    message = fail(
        monkeypatch,
        capfd,
        'pmamba_scratch_digits',
        'model.backbone.arch=pmamba-tyni',
    )
    assert "unknown PlainMamba arch 'pmamba-tyni'" in message
    assert 'pmamba-tiny' in message


def test_missing_teacher(monkeypatch, capfd):
    message = fail(
        monkeypatch,
        capfd,
        OURS,
        'model.teacher_ckpt=gone.pth',
    )
    assert "checkpoint 'gone.pth' does not exist" in message


def test_another_teacher(monkeypatch, capfd):
    message = fail(
        monkeypatch,
        capfd,
        OURS,
        'model.teacher.backbone.arch.num_layers=3',
    )
    assert 'does not match the teacher' in message
    assert 'layers.3' in message


def test_recorder_typo(monkeypatch, capfd):
    message = fail(
        monkeypatch,
        capfd,
        OURS,
        'model.distiller.teacher_recorders.mine.type=transmamba.PatchTokens',
        r'model.distiller.teacher_recorders.mine.source=backbone\.lnn1',
    )
    assert 'matches no module of ImageClassifier' in message


def test_misspelt_option_of_a_loss(monkeypatch, capfd):
    message = fail(
        monkeypatch,
        capfd,
        PAPER,
        'model.distiller.methods.0.weighting=ratio',
    )
    assert 'weighting must be one of softmax, paper_ratio' in message


def test_tokens_that_do_not_align(monkeypatch, capfd):
    message = fail(
        monkeypatch,
        capfd,
        PAPER,
        'model.distiller.methods.0.grid="[3,3]"',
    )
    assert "set FeatureCalibration's grid=(h, w)" in message
