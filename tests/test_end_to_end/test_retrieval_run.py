# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Text-video retrieval on real files: subcloned, distilled, resumed, used."""

import json

import pytest
import torch
from helpers import CONFIGS, own_name, run_tool_here
from mmengine.config import Config
from mmengine.registry import DefaultScope

from transmamba_mm.apis import export_student
from transmamba_mm.datasets.toy_videos import make_toy_videos
from transmamba_mm.registry import MODELS

pytest.importorskip('av')

RECIPE = CONFIGS / 'quickstart/transmamba_clip4clip_videomamba_toy-videos.py'
CONFIG = f"""
_base_ = ['{RECIPE}']
model = dict(
    teacher_ckpt='teacher.pth',
    distiller=dict(
        _delete_=True,
        type='transmamba.MethodDistiller',
        methods=[
            dict(type='transmamba.MixerMatching'),
            dict(type='transmamba.HiddenStates'),
            dict(type='transmamba.SimilarityDistill'),
        ],
        phases=[
            dict(
                end=0.4, methods=['mixer'], trains='mixers', task_loss=False)
        ],
    ),
)
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=1, max_keep_ckpts=-1))
"""
COPIED = 'architecture.text_encoder.ln_final.bias'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with videos, a random teacher and a config."""
    root = tmp_path_factory.mktemp('retrieval')
    make_toy_videos(root / 'data/toy_videos', 24, 12, num_frames=8)
    teacher = Config.fromfile(RECIPE).model.teacher
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = MODELS.build(teacher)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    torch.save(model.state_dict(), root / 'teacher.pth')
    (root / 'config.py').write_text(CONFIG)
    return root


def train(project, work_dir, *more):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        run_tool_here(
            *(patch, 'train', 'config.py', '--work-dir', work_dir, *more),
            *('--cfg-options', own_name()),
        )
    return project / work_dir / 'epoch_2.pth'


@pytest.fixture(scope='module')
def whole(project):
    return train(project, 'whole')


def state_of(path):
    return torch.load(path)['state_dict']


def test_it_starts_from_the_teacher(whole, project):
    plan = json.loads((whole.parent / 'transfer_plan.json').read_text())
    rules = {x['name']: x['rule'] for x in plan['tensors']}
    assert rules['backbone.layers.3.norm.weight'] == 'copy'
    assert rules[COPIED.removeprefix('architecture.')] == 'copy'
    assert rules['head.video_proj.weight'] == 'fresh'
    teacher = torch.load(project / 'teacher.pth')
    first, last = state_of(whole.parent / 'epoch_1.pth'), state_of(whole)
    name = COPIED.removeprefix('architecture.')
    # It starts there, and then it learns.
    assert (first[COPIED] - teacher[name]).abs().max() < 0.05
    assert not first[COPIED].equal(last[COPIED])


def lines_of(work_dir):
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_losses_and_metrics_are_logged(whole):
    lines = lines_of(whole.parent)
    steps = [x for x in lines if 'loss' in x]
    # A quarter of 24 videos, once in each epoch.
    assert [x['captions_seen'] for x in steps] == [6, 12]
    assert 'distill.loss_mixer' in steps[0]
    assert {'student.loss', 'distill.loss_similarity'} <= steps[-1].keys()
    (*_, found) = (x for x in lines if 't2v/R@1' in x)
    assert found['num_queries'] == 12
    assert 0 <= found['v2t/R@10'] <= 100


def test_a_resumed_run_ends_with_the_same_weights(whole, project):
    first = whole.parent / 'epoch_1.pth'
    resumed = state_of(train(project, 'resumed', '--resume', first))
    torch.testing.assert_close(resumed, state_of(whole), rtol=0, atol=0)
    steps = [x for x in lines_of(project / 'resumed') if 'loss' in x]
    assert [x['captions_seen'] for x in steps] == [12]


def test_the_student_alone_gives_the_same_embeddings(whole, project):
    config, weights = export_student(str(whole))
    DefaultScope.get_instance('test', scope_name='mmpretrain')
    student = MODELS.build(Config.fromfile(config).model)
    student.load_state_dict(torch.load(weights)['state_dict'])
    distilled = Config.fromfile(project / 'config.py').model
    distilled.teacher_ckpt = str(project / 'teacher.pth')
    model = MODELS.build(distilled)
    model.load_state_dict(state_of(whole), strict=False)
    videos = torch.randn(2, 3, 8, 32, 32)
    for ours, theirs in zip(
        student.eval()(videos), model.student.eval()(videos)
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
