# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A narrower student is compared with what subcloning gave it."""

from copy import deepcopy

import pytest
import torch
from distill_cases import METHODS, of_methods
from helpers import pmamba_cfg, save_teacher, tiny_batch, tiny_runner, vit_cfg

from transmamba_mm.contract import KeptChannels


def narrow(tmp_path, **kwargs):
    return dict(
        type='transmamba.TransMambaDistill',
        architecture=pmamba_cfg(dims=12),
        teacher=vit_cfg(),
        teacher_ckpt=save_teacher(tmp_path / 'teacher.pth', vit_cfg()),
        distiller=of_methods(METHODS['hidden'], METHODS['mixer'], **kwargs),
    )


def run(model, work_dir, **kwargs):
    runner = tiny_runner(
        work_dir,
        deepcopy(model),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
        custom_hooks=[
            dict(type='transmamba.SubcloneInitializer', importance='random')
        ],
        **kwargs,
    )
    runner.train()
    return runner


def kept_by(model):
    found = [m for m in model.modules() if isinstance(m, KeptChannels)]
    assert len(found) == 2
    first, second = (module.width_12.tolist() for module in found)
    assert first == second
    return first


def test_stage_one_tells_stage_two_and_a_checkpoint_keeps_it(tmp_path):
    model = narrow(tmp_path)
    runner = run(model, tmp_path / 'a', max_epochs=1)
    (plan,) = (
        hook.plan
        for hook in runner.hooks
        if type(hook).__name__ == 'SubcloneInitializer'
    )
    kept = kept_by(runner.model)
    assert kept == plan.kept[12].tolist()
    assert len(set(kept)) == 12 and min(kept) >= 0 and max(kept) < 16
    # Subcloning is skipped, so they come out of the checkpoint.
    resumed = run(model, tmp_path / 'a', max_epochs=2, resume=True)
    assert kept_by(resumed.model) == kept
    assert resumed.epoch == 2


def test_a_subcloned_student_starts_nearer_to_the_kept_channels(tmp_path):
    """What it has of the embedding is the teacher's own."""
    runner = run(narrow(tmp_path), tmp_path / 'a', max_epochs=0)
    model = runner.model.eval()
    images, _ = tiny_batch()
    with torch.no_grad():
        ours = model.student.backbone.patch_embed(images)[0]
        theirs = model.teacher.backbone.patch_embed(images)[0]
    kept = kept_by(model)
    torch.testing.assert_close(ours, theirs[..., kept], rtol=1e-5, atol=1e-6)


def test_channels_are_kept_or_learned():
    from transmamba_mm.registry import TASK_UTILS

    with pytest.raises(ValueError, match="'kept' or 'learned', got 'some'"):
        TASK_UTILS.build(dict(METHODS['hidden'], channels='some'))
