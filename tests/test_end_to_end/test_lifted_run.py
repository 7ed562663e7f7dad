# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A student keeps the map to its teacher's width, from plan to export."""

import json
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, own_name, run_tool_here, save_teacher
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain import get_model

from transmamba_mm.apis import export_student
from transmamba_mm.registry import MODELS

NAME = 'lifted-logits-kd_deit_pmamba-narrow_digits'
CONFIG = CONFIGS / f'quickstart/{NAME}.py'
OPTIONS = [
    'train_dataloader.dataset.fraction=0.04',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.checkpoint.max_keep_ckpts=-1',
]


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with a random teacher where the config expects it."""
    root = tmp_path_factory.mktemp('lifted')
    folder = root / 'work_dirs/deit_digits'
    folder.mkdir(parents=True)
    teacher = Config.fromfile(str(CONFIG)).teacher
    save_teacher(
        folder / 'epoch_60.pth',
        dict(teacher, type='mmpretrain.ImageClassifier'),
    )
    return root


@pytest.fixture(scope='module')
def train(project):
    def train_here(work_dir, epochs, *more):
        options = [*OPTIONS, f'train_cfg.max_epochs={epochs}', own_name()]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(project)
            run_tool_here(
                *(patch, 'train', CONFIG, '--work-dir', work_dir),
                *('--no-validate', *more, '--cfg-options', *options),
            )
        return project / work_dir / f'epoch_{epochs}.pth'

    return train_here


@pytest.fixture(scope='module')
def whole(train):
    return train('whole', 2)


def test_the_head_is_the_teachers(whole, project):
    plan = json.loads((whole.parent / 'transfer_plan.json').read_text())
    entries = {x['name']: x for x in plan['tensors']}
    for name in ('weight', 'bias'):
        head = entries[f'head.fc.{name}']
        assert head['rule'] == 'copy'
        assert head['source'] == f'head.layers.head.{name}'
        assert entries[f'neck.fc.{name}']['rule'] == 'init'
    assert entries['head.fc.weight']['copied_values'] == 640


def test_the_neck_learns(whole):
    before = torch.load(whole.parent / 'epoch_1.pth')['state_dict']
    after = torch.load(whole)['state_dict']
    name = 'architecture.neck.fc.weight'
    assert not before[name].equal(after[name])
    assert not any(key.startswith('distiller.') for key in after)


def test_a_resumed_run_ends_with_the_same_weights(whole, train):
    train('resumed', 1)
    resumed = torch.load(train('resumed', 2, '--resume'))
    torch.testing.assert_close(
        resumed['state_dict'], torch.load(whole)['state_dict'], rtol=0, atol=0
    )


def test_the_export_needs_no_distillation(whole, project, monkeypatch):
    """Its config and weights make a plain classifier, by mmpretrain."""
    config, weights = export_student(str(whole))
    assert 'TransMambaDistill' not in Path(config).read_text()
    student = get_model(config, pretrained=weights, device='cpu').eval()
    state = torch.load(whole)['state_dict']
    kept = {
        key.removeprefix('architecture.'): value
        for key, value in state.items()
        if key.startswith('architecture.')
    }
    assert kept.keys() == student.state_dict().keys()
    images = torch.randn(2, 3, 16, 16)
    pooled = student.backbone(images)[0]
    fc, head = 'neck.fc', 'head.fc'
    lifted = pooled @ kept[f'{fc}.weight'].T + kept[f'{fc}.bias']
    wanted = lifted @ kept[f'{head}.weight'].T + kept[f'{head}.bias']
    torch.testing.assert_close(student(images), wanted)
    scores = []
    monkeypatch.chdir(project)
    for number, (cfg, checkpoint) in enumerate(
        ((CONFIG, whole), (config, weights))
    ):
        out = f'{number}.json'
        run_tool_here(
            *(monkeypatch, 'test', cfg, checkpoint, '--out', out),
            *('--out-item', 'metrics', '--work-dir', f'test{number}'),
            *('--cfg-options', own_name()),
        )
        scores.append(json.loads((project / out).read_text()))
    assert scores[0] == scores[1]


def test_a_distillation_takes_up_the_exported_student(whole):
    """Neck and head included."""
    _, weights = export_student(str(whole), str(whole.parent / 'again'))
    cfg = Config.fromfile(str(CONFIG))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(cfg.model, teacher_ckpt=None))
    exported = torch.load(weights)['state_dict']
    model.load_state_dict(dict(exported))
    found = model.student.state_dict()
    assert all(found[key].equal(value) for key, value in exported.items())
