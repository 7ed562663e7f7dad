# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The files of docs/guides/extending.md, and nothing else, make a pair."""

import ast
import json
import re
import sys

import numpy as np
import pytest
import torch
from helpers import CONFIGS, ROOT, own_name, run_tool_here, save_teacher
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmpretrain.datasets import BaseDataset
from mmpretrain.models import ImageClassifier
from torch import nn

from transmamba_mm.apis import export_student, plan_transfer
from transmamba_mm.contract import FAMILIES
from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.registry import DATASETS, MODELS, SCAN_ORDERS, TASK_UTILS

GUIDE = ROOT / 'docs/guides/extending.md'
FILES = {
    re.match(r'# (\w+)\.py\n', code)[1]: code
    for code in re.findall(r'```python\n(.*?)```', GUIDE.read_text(), re.S)
}
DIMS, EPOCHS = 16, 2
CONFIG = f"""
_base_ = [
    '{CONFIGS}/_base_/schedules/digits_adamw_cosine.py',
    '{CONFIGS}/_base_/methods/mixer_matching.py',
    '{CONFIGS}/_base_/default_runtime.py',
]
custom_imports = dict(imports=['transmamba_mm', *{list(FILES)}])
model = dict(
    type='transmamba.TransMambaDistill',
    architecture=dict(
        type='ImageClassifier',
        backbone=dict(
            type='transmamba.SpiralMamba',
            dims={DIMS},
            depth=2,
            img_size=16,
            patch=4,
        ),
        head=dict(type='LinearClsHead', num_classes=2, in_channels={DIMS}),
    ),
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='transmamba.SageFormer'),
        head=dict(type='LinearClsHead', num_classes=2, in_channels={DIMS}),
    ),
    teacher_ckpt='teacher.pth',
    distiller=dict(
        type='transmamba.MethodDistiller',
        methods=[
            dict(type='transmamba.AdaptiveBidirectional'),
            {{{{_base_.mixer_matching}}}},
            dict(type='transmamba.Gram'),
        ],
    ),
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
val_cfg = test_cfg = None
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3, num_classes=2)
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='transmamba.Stripes',
        pipeline=[
            dict(type='RandomCrop', crop_size=16, padding=2),
            dict(type='PackInputs'),
        ],
    ),
)
"""


class Stripes(BaseDataset):
    """Rows and columns: a dataset in one place."""

    METAINFO = dict(classes=('rows', 'columns'))

    def __init__(self, **kwargs):
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self):
        rows = np.zeros((16, 16, 3), np.uint8)
        rows[::3] = 255
        images = (rows, rows.transpose(1, 0, 2))
        return [dict(img=images[i % 2], gt_label=i % 2) for i in range(12)]


class SageAttention(nn.Module):
    def __init__(self, heads=2):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(DIMS, 3 * DIMS)
        self.merge = nn.Linear(DIMS, DIMS)

    def forward(self, x):
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        mixed = nn.functional.scaled_dot_product_attention(
            *(tokens.transpose(1, 2) for tokens in (q, k, v))
        )
        return self.merge(mixed.transpose(1, 2).flatten(2))


class SageLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first_norm = nn.LayerNorm(DIMS)
        self.attention = SageAttention()

    def forward(self, x):
        return x + self.attention(self.first_norm(x))


class SageFormer(nn.Module):
    """A Transformer whose parts have names of their own."""

    def __init__(self):
        super().__init__()
        self.to_patches = nn.Conv2d(3, DIMS, 4, 4)
        self.summary = nn.Parameter(torch.zeros(1, 1, DIMS))
        self.stack = nn.Sequential(*(SageLayer() for _ in range(3)))
        self.last_norm = nn.LayerNorm(DIMS)

    def forward(self, images):
        patches = self.to_patches(images).flatten(2).mT
        summary = self.summary.expand(len(images), -1, -1)
        tokens = torch.cat([summary, patches], dim=1)
        return (self.last_norm(self.stack(tokens))[:, 0],)


def build(config):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(config).eval()


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with the guide's files, the config and a teacher."""
    folder = tmp_path_factory.mktemp('extending')
    for name, code in FILES.items():
        (folder / f'{name}.py').write_text(code)
    (folder / 'config.py').write_text(CONFIG)
    tables = [
        SCAN_ORDERS.module_dict,
        MODELS.module_dict,
        TASK_UTILS.module_dict,
        DATASETS.module_dict,
        FAMILIES,
    ]
    before = [dict(table) for table in tables]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        MODELS.register_module(module=SageFormer)
        DATASETS.register_module(module=Stripes)
        cfg = Config.fromfile('config.py')  # imports the guide's files
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            save_teacher('teacher.pth', cfg.model.teacher)
        yield folder
    for table, kept in zip(tables, before):
        table.clear()
        table.update(kept)
    for name in FILES:
        sys.modules.pop(name)


@pytest.fixture(scope='module')
def runs(project):
    """Checkpoints after all epochs: of a whole run, and of a resumed one."""

    def train(work_dir, epochs, *more):
        with pytest.MonkeyPatch.context() as patch:
            run_tool_here(
                patch,
                'train',
                'config.py',
                *more,
                '--work-dir',
                work_dir,
                '--cfg-options',
                f'train_cfg.max_epochs={epochs}',
                own_name(),
            )
        return project / work_dir / f'epoch_{epochs}.pth'

    whole = train('whole', EPOCHS)
    train('resumed', EPOCHS - 1)
    return whole, train('resumed', EPOCHS, '--resume')


def test_the_scan_order(project):
    order = scan_order('spiral', 3, 4)
    assert order.tolist() == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]


def test_plan_and_subcloning(project, runs):
    """What has a counterpart in the teacher is copied, as it is."""
    cfg = Config.fromfile('config.py')
    plan = plan_transfer(cfg)
    written = json.loads((project / 'whole/transfer_plan.json').read_text())
    assert written == plan.to_dict()
    student = build(cfg.model.architecture)
    plan.apply(student)
    ours, theirs = student.state_dict(), torch.load('teacher.pth')
    copied = {e.name: e.source for e in plan.entries if e.rule == 'copy'}
    for name, source in copied.items():
        assert ours[name].equal(theirs[source]), name
    assert copied['backbone.layers.1.mixer.out_proj.weight'] == (
        'backbone.stack.2.attention.merge.weight'
    )
    fresh = {e.name.rpartition('.mixer.')[2]: e.rule for e in plan.entries}
    fresh = {name for name, rule in fresh.items() if rule == 'fresh'}
    assert fresh == {'in_proj.weight', 'steps.weight', 'steps.bias', 'A'}


def test_all_of_the_student_learns_from_all_losses(project, runs):
    first, last = (
        torch.load(project / 'whole' / f'epoch_{epoch}.pth')['state_dict']
        for epoch in (EPOCHS - 1, EPOCHS)
    )
    for name, value in last.items():
        assert value.isfinite().all(), name
        if not name.startswith('data_preprocessor'):
            same = name.startswith('teacher.')
            assert value.equal(first[name]) == same, name
    (log,) = (project / 'whole').glob('*/vis_data/scalars.json')
    logged = json.loads(log.read_text().splitlines()[-1])
    for name in ('gram', 'transmamba', 'mixer'):
        assert logged[f'distill.loss_{name}'] > 0
    assert logged['student.loss'] > 0


@pytest.mark.skipif(get_device() != 'cpu', reason='a promise for the CPU')
def test_resumes_bit_by_bit(runs):
    whole, resumed = (torch.load(path) for path in runs)
    for name, value in whole['state_dict'].items():
        assert value.equal(resumed['state_dict'][name]), name
    for key, state in whole['optimizer']['state'].items():
        for name, value in state.items():
            assert value.equal(resumed['optimizer']['state'][key][name])


def test_exports_a_plain_classifier(runs):
    config, weights = export_student(str(runs[0]))
    cfg = Config.fromfile(config)
    student = build(cfg.model)
    assert type(student) is ImageClassifier
    student.load_state_dict(torch.load(weights)['state_dict'], strict=True)
    pair = build(Config.fromfile('config.py').model)
    pair.load_state_dict(torch.load(runs[0])['state_dict'], strict=True)
    images = torch.randn(2, 3, 16, 16)
    assert student(images).equal(pair.student(images))


def test_lines_of_the_guide():
    for name, code in FILES.items():
        ast.parse(code, feature_version=(3, 9))
        assert max(map(len, code.splitlines())) <= 79, name
