# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A lazy config, with everything named by its class, through the tools."""

import pytest
from helpers import own_name, run_tool_here, save_teacher, vit_cfg

CONFIG = """
import random
import mmengine.runner as runner_typ
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.datasets import CIFAR10 as train_dataloade
from mmpretrain.models import (
    ImageClassifier, LinearClsHead, VisionTransformer, VisionTransformerClsHead
)
from torch.optim import SGD
from transmamba_mm.datasets import Digits
from transmamba_mm.distill import (
    DirectionTapsRecorder, DistillMonitor, TransMambaDistill
)
from transmamba_mm.models import PlainMamba
from transmamba_mm.razor import (
    ConfigurableDistiller, KLDivergence, ModuleOutputsRecorder
)

with read_base():
    from .runtime import *

def env_cfgs():
    return 1

class modell:
    pass

default_scope = 'mmpretrain'
work_dirs = env_cfgs
%s
student = dict(
    type=ImageClassifier,
    data_preprocessor=dict(mean=[78.0] * 3, std=[96.0] * 3, to_rgb=False),
    backbone=dict(
        type=PlainMamba, arch=dict(embed_dims=16, num_layers=2), img_size=16,
        patch_size=4, stem='patch', mixer_cfg=dict(d_state=4),
    ),
    head=dict(type=LinearClsHead, num_classes=10, in_channels=16),
)
scores = dict(from_student=True, recorder='scores')
model = dict(
    type=TransMambaDistill,
    architecture=student,
    teacher=%s,
    teacher_ckpt='teacher.pth',
    distiller=dict(
        type=ConfigurableDistiller,
        student_recorders=dict(
            scores=dict(type=ModuleOutputsRecorder, source='head.fc'),
            taps=dict(type=DirectionTapsRecorder),
        ),
        teacher_recorders=dict(
            scores=dict(
                type='mmrazor.ModuleOutputs', source='head.layers.head'
            ),
        ),
        distill_losses=dict(loss_kl=dict(type=KLDivergence)),
        loss_forward_mappings=dict(loss_kl=dict(
            preds_S=scores, preds_T=dict(scores, from_student=False)
        )),
    ),
)
train_dataloader = dict(
    batch_size=32, num_workers=0, sampler=dict(type=DefaultSampler),
    dataset=dict(
        type='transmamba.FractionDataset', fraction=0.05,
        dataset=dict(type=Digits, split='train', pipeline=[
            dict(type='mmpretrain.PackInputs')
        ]),
    ),
)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
custom_hooks = [dict(type=DistillMonitor, interval=1)]
"""
RUNTIME = """
from mmengine.hooks import IterTimerHook as default_hook
"""


def write(folder, extra=''):
    (folder / 'runtime.py').write_text(RUNTIME)
    teacher = vit_cfg(classes=10)
    save_teacher(folder / 'teacher.pth', teacher)
    for part, kind in (
        ('head', 'VisionTransformerClsHead'),
        ('backbone', 'VisionTransformer'),
    ):
        teacher[part]['type'] = f'mmpretrain.{kind}'
    (folder / 'lazy.py').write_text(CONFIG % (extra, teacher))


def test_it_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    run_tool_here(monkeypatch, 'train', 'lazy.py', '--cfg-options', own_name())
    assert (tmp_path / 'work_dirs/lazy/epoch_1.pth').exists()


def test_a_misspelt_setting_is_found_there_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 'optim_wraper = dict(type=OptimWrapper)')
    with pytest.raises(SystemExit) as caught:
        run_tool_here(monkeypatch, 'train', 'lazy.py')
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count('did you mean') == 1
    assert "'optim_wraper' (did you mean 'optim_wrapper'?)" in error
