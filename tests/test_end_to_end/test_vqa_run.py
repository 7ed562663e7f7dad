# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Questions about drawn shapes: subcloned, distilled, resumed, exported."""

import json

import pytest
import torch
from helpers import CONFIGS, own_name, run_tool_here
from mmengine.config import Config
from mmengine.registry import DefaultScope

from transmamba_mm.apis import export_student
from transmamba_mm.datasets.toy_vqa import make_toy_vqa
from transmamba_mm.registry import DATASETS, MODELS

pytest.importorskip('transformers')

RECIPE = CONFIGS / 'quickstart/transmamba_llava_transmamba-lm_toy-vqa.py'
CONFIG = f"""
_base_ = ['{RECIPE}']
model = dict(
    teacher_ckpt='teacher.pth', teacher=dict(lang_encoder=dict(dtype=DTYPE))
)
train_dataloader = dict(batch_size=4)
val_dataloader = dict(batch_size=6)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=2), _base_.param_scheduler[1]
]
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=1, max_keep_ckpts=-1))
"""
COPIED = (
    'projector.layers.0.weight',
    'vision_encoder.ln_pre.weight',
    'lang_encoder.embed_tokens.weight',
)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with questions, a random teacher and configs."""
    root = tmp_path_factory.mktemp('vqa')
    make_toy_vqa(root / 'data/toy_vqa', 48, 12)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = MODELS.build(Config.fromfile(RECIPE).model.teacher)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    torch.save(model.state_dict(), root / 'teacher.pth')
    for name in ('float32', 'bfloat16'):
        text = CONFIG.replace('DTYPE', repr(name))
        (root / f'{name}.py').write_text(text)
    return root


def train(project, config, work_dir, *more):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        run_tool_here(
            *(patch, 'train', config, '--work-dir', work_dir, *more),
            *('--cfg-options', own_name()),
        )
    return project / work_dir / 'epoch_2.pth'


@pytest.fixture(scope='module')
def whole(project):
    return train(project, 'float32.py', 'whole')


def state_of(path):
    return torch.load(path)['state_dict']


def lines_of(work_dir):
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_it_starts_from_the_teacher(whole):
    plan = json.loads((whole.parent / 'transfer_plan.json').read_text())
    rules = {x['name']: x['rule'] for x in plan['tensors']}
    assert {rules[name] for name in COPIED} == {'copy'}
    assert rules['lang_encoder.layers.3.mixer.out_proj.weight'] == 'copy'
    assert rules['lang_encoder.layers.3.mixer.in_proj.weight'] == 'fresh'
    first, last = state_of(whole.parent / 'epoch_1.pth'), state_of(whole)
    teacher = {k: v for k, v in last.items() if k.startswith('teacher.')}
    assert teacher
    for key, value in teacher.items():
        assert value.equal(first[key])


def test_losses_and_metrics_are_logged(whole):
    lines = lines_of(whole.parent)
    steps = [x for x in lines if 'loss' in x]
    assert 'distill.loss_mixer' in steps[0]
    assert {
        'student.loss',
        'distill.loss_hidden',
        'distill.loss_kl',
    } <= steps[-1].keys()
    (found,) = (x for x in lines if 'vqa/accuracy' in x)
    assert found['vqa/num_questions'] == 12
    assert 0 <= found['vqa/accuracy'] <= 100


def test_a_resumed_run_ends_with_the_same_weights(whole, project):
    first = whole.parent / 'epoch_1.pth'
    resumed = train(project, 'float32.py', 'resumed', '--resume', first)
    torch.testing.assert_close(
        state_of(resumed), state_of(whole), rtol=0, atol=0
    )


def test_a_teacher_in_half_precision(project):
    found = train(project, 'bfloat16.py', 'half')
    state = state_of(found)
    kinds = {
        side: {v.dtype for k, v in state.items() if f'{side}.lang_' in k}
        for side in ('teacher', 'architecture')
    }
    assert kinds['teacher'] == {torch.bfloat16}
    assert kinds['architecture'] == {torch.float32}
    steps = [x for x in lines_of(found.parent) if 'loss' in x]
    assert all(0 < x['loss'] < 100 for x in steps)


def test_the_student_alone_gives_the_same_answers(whole, project, monkeypatch):
    monkeypatch.chdir(project)
    path, weights = export_student(str(whole))
    DefaultScope.get_instance('test', scope_name='mmpretrain')
    config = Config.fromfile(path)
    config.model.setdefault('data_preprocessor', config.data_preprocessor)
    student = MODELS.build(config.model)
    student.load_state_dict(torch.load(weights)['state_dict'])
    distilled = Config.fromfile(project / 'float32.py')
    distilled.model.data_preprocessor = distilled.data_preprocessor
    model = MODELS.build(distilled.model)
    model.load_state_dict(state_of(whole), strict=False)
    dataset = DATASETS.build(distilled.val_dataloader.dataset)
    batch = [dataset[i] for i in range(4)]
    data = {key: [x[key] for x in batch] for key in batch[0]}
    found = [
        [x.pred_answer for x in each.eval().test_step(data)]
        for each in (student, model)
    ]
    assert found[0] == found[1] and len(found[0]) == 4
