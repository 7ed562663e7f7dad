# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Augmentation as a function of seed, sample and view."""

import random
import zlib

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmpretrain.registry import DATASETS, TRANSFORMS
from torch.utils.data import DataLoader

from transmamba_mm.datasets import SeededAugment
from transmamba_mm.engine import seed_worker


@TRANSFORMS.register_module()
class DrawsFromAll:
    """Writes a number of each random generator into the image."""

    def __call__(self, results):
        drawn = random.random(), np.random.rand(), torch.rand(1).item()
        results['img'] = (255 * np.array(drawn)).astype(np.uint8)[
            :, None, None
        ]
        return results


def config(**kwargs):
    inner = dict(
        type='transmamba.Digits',
        pipeline=[dict(type='DrawsFromAll'), dict(type='PackInputs')],
        indices=8,
    )
    return dict(
        type='transmamba.SeededAugment', dataset=inner, num_views=2, **kwargs
    )


def images(dataset, epoch):
    dataset.set_epoch(epoch)
    return torch.stack([dataset[i]['inputs'] for i in range(len(dataset))])


def test_views_come_again_and_differ():
    dataset = DATASETS.build(config())
    assert isinstance(dataset, SeededAugment) and len(dataset) == 8
    views = [images(dataset, epoch) for epoch in range(4)]
    assert views[0].equal(views[2]) and views[1].equal(views[3])
    flat = torch.cat(views[:2]).flatten(1)
    assert len(flat.unique(dim=0)) == 16
    # Every generator is seeded, in every order.
    assert all(len(flat[:, i].unique()) > 8 for i in range(3))
    dataset.set_epoch(0)
    assert dataset[5]['inputs'].equal(views[0][5])
    assert dataset[-3]['inputs'].equal(views[0][5])
    again = images(DATASETS.build(config()), 0)
    assert again.equal(views[0])
    other = images(DATASETS.build(config(seed=1)), 0)
    assert (other != views[0]).flatten(1).any(1).all()


def test_nobody_else_sees_the_seeds():
    dataset = DATASETS.build(config())
    dataset.set_epoch(0)

    def draw(touch):
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        if touch:
            dataset[0]
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(True) == draw(False)


@pytest.mark.parametrize('persistent', [False, True])
def test_workers_show_the_same_view(persistent):
    dataset = DATASETS.build(config())
    loader = DataLoader(
        dataset,
        batch_size=3,
        num_workers=2,
        collate_fn=pseudo_collate,
        worker_init_fn=seed_worker,
        persistent_workers=persistent,
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        found = torch.stack([x for b in loader for x in b['inputs']])
        assert found.equal(images(dataset, epoch))


def test_samples_say_which_they_are():
    dataset = DATASETS.build(config())
    dataset.set_epoch(3)
    data = dataset[6]
    sample = data['data_samples']
    assert (sample.sample_idx, sample.augment_view) == (6, 1)
    assert sample.image_crc == zlib.crc32(data['inputs'].numpy().tobytes())


def test_mistakes():
    with pytest.raises(
        RuntimeError, match=r'outermost dataset.*EpochSeedHook'
    ):
        DATASETS.build(config())[0]
    with pytest.raises(ValueError, match='num_views must be at least 1'):
        DATASETS.build(dict(config(), num_views=0))
