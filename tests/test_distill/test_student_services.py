# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What others ask a classifier for, a distillation answers as its student."""

import pytest
import torch
from helpers import tiny_batch, tiny_runner, tiny_student
from mmengine.optim import build_optim_wrapper
from mmpretrain.engine.optimizers import (
    LearningRateDecayOptimWrapperConstructor,
)

from transmamba_mm.engine import MergedGroupsOptimWrapperConstructor
from transmamba_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class MergedLayerDecay(
    MergedGroupsOptimWrapperConstructor,
    LearningRateDecayOptimWrapperConstructor,
):
    """As the guide of the former recommends."""


@pytest.mark.parametrize(
    'constructor',
    [LearningRateDecayOptimWrapperConstructor, MergedLayerDecay],
)
def test_layer_wise_rates_are_those_of_the_student_alone(make, constructor):
    """Of what is not the student's, they are the highest."""

    def rates(model):
        wrapper = build_optim_wrapper(
            model,
            dict(
                optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
                constructor=constructor,
                paramwise_cfg=dict(layer_decay_rate=0.5),
            ),
        )
        names = {p: name for name, p in model.named_parameters()}
        return {
            names[p]: group['lr']
            for group in wrapper.optimizer.param_groups
            for p in group['params']
        }

    model = make()
    alone, whole = rates(model.student), rates(model)
    assert len(set(alone.values())) == 4
    ours = {k: v for k, v in whole.items() if k.startswith('architecture.')}
    assert ours == {f'architecture.{k}': v for k, v in alone.items()}
    assert {v for k, v in whole.items() if k not in ours} == {1.0}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert whole.keys() == trained


def test_features_are_the_students(make):
    model = make(architecture=tiny_student(out_indices=(0, 1))).eval()
    student, (images, _) = model.student, tiny_batch()
    for stage in ('backbone', 'neck', 'pre_logits'):
        found = model.extract_feat(images, stage=stage)
        wanted = student.extract_feat(images, stage=stage)
        assert all(map(torch.equal, found, wanted))
    assert len(model.extract_feats([images, images])) == 2
    assert model.backbone is student.backbone
    assert model.head is student.head and model.with_head
    assert model.neck is None and not model.with_neck


def test_a_hook_of_mmpretrain_finds_the_head(make, tmp_path):
    recipe = dict(
        action_epoch=1, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)
    )
    hook = dict(type='SwitchRecipeHook', schedule=[recipe])
    model = make()
    tiny_runner(tmp_path, model, num=4, custom_hooks=[hook]).train()
    assert type(model.head.loss_module).__name__ == 'LabelSmoothLoss'
