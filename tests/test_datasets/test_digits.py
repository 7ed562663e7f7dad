# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The digits that ship with scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from transmamba_mm.datasets import Digits
from transmamba_mm.registry import DATASETS


@pytest.fixture(scope='module')
def splits():
    return {split: Digits(split=split) for split in ('train', 'test')}


def test_sizes(splits):
    assert len(splits['train']) == 1297
    assert len(splits['test']) == 500
    assert splits['test'].test_mode
    assert not splits['train'].test_mode


def test_the_splits_are_a_partition(splits):
    images = {
        split: {
            dataset[i]['img'].tobytes() + bytes([dataset[i]['gt_label']])
            for i in range(len(dataset))
        }
        for split, dataset in splits.items()
    }
    # No image twice, so these are all of the 1,797.
    assert {k: len(v) for k, v in images.items()} == dict(train=1297, test=500)
    assert not images['train'] & images['test']


def test_stratified(splits):
    share = np.bincount(load_digits().target) / 1797
    for dataset in splits.values():
        counts = np.bincount(dataset.get_gt_labels(), minlength=10)
        assert np.abs(counts - share * len(dataset)).max() <= 1


def test_samples(splits):
    sample = splits['train'][0]
    assert sample['img'].shape == (8, 8, 3)
    assert sample['img'].dtype == np.uint8
    assert (sample['img'][..., 0] == sample['img'][..., 2]).all()
    assert splits['train'].metainfo['classes'] == tuple('0123456789')
    pixels = np.stack([splits['test'][i]['img'] for i in range(500)])
    assert pixels.min() == 0
    assert pixels.max() == 255
    # Levels 0..16 of the source, spread over 0..255.
    levels = {round(k * 255 / 16) for k in range(17)}
    assert {int(v) for v in np.unique(pixels)} <= levels


def test_images_belong_to_their_labels(splits):
    digits = load_digits()
    known = {
        (digits.images[i] * 255 / 16).round().astype(np.uint8).tobytes(): int(
            digits.target[i]
        )
        for i in range(1797)
    }
    for dataset in splits.values():
        for i in range(0, len(dataset), 25):
            image = np.ascontiguousarray(dataset[i]['img'][..., 0])
            assert known[image.tobytes()] == dataset[i]['gt_label']


def test_the_split_is_fixed(splits):
    np.random.seed(3)
    again = Digits(split='test')
    for i in (0, 17, 499):
        assert (again[i]['img'] == splits['test'][i]['img']).all()


def test_from_a_config_with_a_pipeline():
    dataset = DATASETS.build(
        dict(
            type='transmamba.Digits',
            split='test',
            pipeline=[
                dict(type='Resize', scale=(16, 16)),
                dict(type='PackInputs'),
            ],
        )
    )
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 16, 16)
    assert sample['data_samples'].gt_label.item() in range(10)


def test_unknown_split():
    with pytest.raises(ValueError, match="'train' or 'test', got 'val'"):
        Digits(split='val')
