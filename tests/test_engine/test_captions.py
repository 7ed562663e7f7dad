# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Captions seen, over partial batches, processes and kinds of models."""

import pytest
from helpers import tiny_runner, tiny_student
from mmengine.dataset import pseudo_collate
from retrieval_models import build_random, clip4clip_cfg, video_batch
from torch.utils.data import DataLoader

from transmamba_mm.engine import CaptionsSeenHook, captions
from transmamba_mm.registry import MODELS


def run(tmp_path, model, **kwargs):
    runner = tiny_runner(
        tmp_path,
        model,
        max_epochs=2,
        custom_hooks=[CaptionsSeenHook()],
        default_hooks=dict(checkpoint=None),
        **kwargs,
    )
    runner.train()
    return runner.message_hub.log_scalars.get('train/captions_seen')


@pytest.mark.parametrize('processes', [1, 2])
def test_each_sample_counts_in_each_process(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(captions, 'get_world_size', lambda: processes)
    samples = [dict(inputs=x, data_samples=y) for x, y in zip(*video_batch(5))]
    loader = DataLoader(samples, batch_size=3, collate_fn=pseudo_collate)
    model = build_random(clip4clip_cfg())
    seen = run(tmp_path, model, train_dataloader=loader).data[0]
    assert seen.tolist() == [processes * x for x in (3, 5, 8, 10)]


def test_pictures_have_no_captions(tmp_path):
    assert run(tmp_path, MODELS.build(tiny_student())) is None
