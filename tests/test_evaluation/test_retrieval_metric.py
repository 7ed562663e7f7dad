# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Retrieval against a brute-force oracle, ties and processes included."""

import numpy as np
import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample

from transmamba_mm.evaluation import fair_ranks
from transmamba_mm.registry import METRICS


def oracle(queries, query_ids, gallery, gallery_ids, sharpness=None):
    """Ranks one by one, with NumPy alone."""
    scores = queries @ gallery.T
    if sharpness is not None:
        odds = np.exp(sharpness * scores)
        scores = scores * odds / odds.sum(0)
    ranks = []
    for row, wanted in zip(scores, query_ids):
        right = gallery_ids == wanted
        best, wrong = row[right].max(), row[~right]
        ranks.append(1 + (wrong > best).sum() + (wrong == best).sum() / 2)
    return np.array(ranks)


# Small whole numbers: many ties, and exact products.
@given(
    st.integers(1, 6).flatmap(
        lambda videos: st.tuples(
            st.just(videos),
            st.lists(st.integers(0, videos - 1), max_size=9),
            st.integers(0, 2**20),
            st.integers(1, 40),
        )
    )
)
@settings(max_examples=150, deadline=None)
def test_ranks_equal_the_oracle(drawn):
    videos, more, seed, max_scores = drawn
    rng = np.random.default_rng(seed)
    owners = np.array([*range(videos), *more])  # each video has a caption
    text = rng.integers(-2, 3, (len(owners), 2)).astype(float)
    video = rng.integers(-2, 3, (videos, 2)).astype(float)
    sides = (text, owners), (video, np.arange(videos))
    for query, gallery in (sides, sides[::-1]):
        args = (*query, *gallery)
        found = fair_ranks(*map(torch.tensor, args), max_scores=max_scores)
        assert found.tolist() == oracle(*args).tolist()


def test_dual_softmax_equals_the_oracle():
    rng = np.random.default_rng(3)
    args = rng.normal(size=(30, 4)), np.arange(30) % 10
    args += rng.normal(size=(10, 4)), np.arange(10)
    for max_scores in (10, 70, 300):
        found = fair_ranks(
            *map(torch.tensor, args), sharpness=3.0, max_scores=max_scores
        )
        assert found.tolist() == oracle(*args, sharpness=3.0).tolist()
    assert found.tolist() != oracle(*args).tolist()


def samples_of(videos=7, width=5, seed=0):
    """Data samples with one, two or three captions each."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(videos):
        sample = DataSample(metainfo=dict(video_id=f'video{i}'))
        for name, shape in (
            ('video_embedding', (width,)),
            ('text_embeddings', (1 + i % 3, width)),
        ):
            values = torch.tensor(rng.normal(size=shape), dtype=torch.float32)
            sample.set_field(values, name)
        samples.append(sample)
    return samples


def measure(samples, batch=3, **options):
    metric = dict(type='transmamba.VideoTextRetrievalMetric', **options)
    evaluator = Evaluator(METRICS.build(metric))
    for start in range(0, len(samples), batch):
        evaluator.process(samples[start : start + batch])
    return evaluator.evaluate(len(samples))


def test_metric_equals_the_oracle():
    samples = samples_of()
    video = np.stack([s.video_embedding.numpy() for s in samples])
    text = np.concatenate([s.text_embeddings.numpy() for s in samples])
    counts = [len(s.text_embeddings) for s in samples]
    owners = np.repeat(np.arange(7), counts)
    found = measure(samples, dual_softmax=2.0)
    assert found['num_queries'] == 13 and found['num_videos'] == 7
    both = dict(
        t2v=(text, owners, video, np.arange(7)),
        v2t=(video, np.arange(7), text, owners),
    )
    for name, args in both.items():
        for suffix, sharpness in (('', None), ('_dual_softmax', 2.0)):
            ranks = oracle(*args, sharpness=sharpness)
            wanted = {f'R@{k}': 100 * np.mean(ranks <= k) for k in (1, 5, 10)}
            wanted.update(MdR=np.median(ranks), MnR=np.mean(ranks))
            for key, value in wanted.items():
                got = found[f'{name}{suffix}/{key}']
                assert got == pytest.approx(value, abs=1e-9), (name, key)


def test_a_model_that_scores_all_alike_is_at_chance():
    """With one rank for each tie, or the first of them, it would not be."""
    samples = samples_of(videos=9)
    for sample in samples:
        sample.video_embedding.zero_()
    found = measure(samples)
    assert found['t2v/MnR'] == found['t2v/MdR'] == 5
    assert found['t2v/R@1'] == 0


def test_a_video_whose_captions_come_apart_is_one():
    """As where a validation set has one sample for each caption."""
    together, apart = samples_of(), []
    for sample in together:
        for row in sample.text_embeddings:
            one = sample.clone()
            one.set_field(row[None], 'text_embeddings')
            apart.append(one)
    assert len(apart) == 13
    assert measure(apart) == measure(together)


def test_what_is_not_finite_has_no_rank():
    samples = samples_of()
    samples[2].video_embedding[0] = float('nan')
    with pytest.raises(ValueError, match=r'gallery .* not finite'):
        measure(samples)


@pytest.mark.parametrize(
    'options', [dict(topk=[0]), dict(max_scores=0), dict(dual_softmax=-1.0)]
)
def test_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        METRICS.build(
            dict(type='transmamba.VideoTextRetrievalMetric', **options)
        )


def evaluate_a_shard(rank, folder):
    """Seven samples on two processes: the sampler repeats the first."""
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    samples = samples_of()
    metric = METRICS.build(dict(type='transmamba.VideoTextRetrievalMetric'))
    evaluator = Evaluator(metric)
    for sample in [*samples, samples[0]][rank::2]:
        evaluator.process([sample])
    torch.save(evaluator.evaluate(len(samples)), f'{folder}/{rank}.pt')
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    args = (str(tmp_path),)
    mp.start_processes(
        evaluate_a_shard, args, nprocs=2, start_method='forkserver'
    )
    wanted = measure(samples_of())
    for rank in range(2):
        assert torch.load(tmp_path / f'{rank}.pt') == wanted
