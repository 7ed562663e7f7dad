# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Captions seen, over partial batches, processes and kinds of models."""

import pytest
from helpers import tiny_runner, tiny_student
from mmengine.dataset import pseudo_collate
from retrieval_models import (
    WORDS,
    build_random,
    clip4clip_cfg,
    video_batch,
)
from torch.utils.data import DataLoader

from transmamba_mm.datasets import VideoTextDataset
from transmamba_mm.engine import CaptionsSeenHook, captions
from transmamba_mm.engine.captions import check_tokens
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


def check(tmp_path, vocab_size, max_words=WORDS):
    vocabulary = tmp_path / 'vocabulary.txt'
    vocabulary.write_text('#version\na b\nb c\nc d')
    tokens = dict(
        type='transmamba.TokenizeText',
        max_words=max_words,
        tokenizer=dict(
            type='transmamba.CLIPTokenizer', vocabulary=str(vocabulary)
        ),
    )
    data = VideoTextDataset(
        'all.json', data_root=str(tmp_path), pipeline=[tokens], lazy_init=True
    )
    config = clip4clip_cfg()
    config['text_encoder']['vocab_size'] = vocab_size
    check_tokens(dict(train_dataloader=data), MODELS.build(config))


def test_captions_that_a_tower_cannot_read_are_refused(tmp_path):
    check(tmp_path, vocab_size=517)
    with pytest.raises(ValueError, match=r'max_words=7 .*context_length=6'):
        check(tmp_path, vocab_size=517, max_words=WORDS + 1)
    with pytest.raises(ValueError, match=r'517 tokens, .* vocab_size=516'):
        check(tmp_path, vocab_size=516)
