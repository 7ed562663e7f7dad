# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Nested, class-balanced shares of a data set."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from transmamba_mm.datasets.fraction import stratified_indices
from transmamba_mm.registry import DATASETS

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
FRACTIONS = st.floats(0.001, 1)


@given(LABELS, FRACTIONS, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_counts_per_class(labels, fraction, seed):
    kept = stratified_indices(labels, fraction, seed)
    assert kept == sorted(set(kept))
    assert all(0 <= i < len(labels) for i in kept)
    for label in np.unique(labels):
        size = int((labels == label).sum())
        count = int((labels[kept] == label).sum())
        assert 1 <= count <= size
        assert abs(count - fraction * size) <= 0.5 or count == 1
    assert kept == stratified_indices(labels, fraction, seed)


@given(LABELS, FRACTIONS, FRACTIONS, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_nested(labels, first, second, seed):
    small, large = sorted((first, second))
    assert set(stratified_indices(labels, small, seed)) <= set(
        stratified_indices(labels, large, seed)
    )


@given(LABELS, st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_everything(labels, seed):
    everything = list(range(len(labels)))
    assert stratified_indices(labels, 1.0, seed) == everything


def test_seeds_differ():
    labels = np.zeros(100, int)
    draws = {tuple(stratified_indices(labels, 0.1, s)) for s in range(5)}
    assert len(draws) == 5
    # A draw, not the first ones.
    assert tuple(range(10)) not in draws


def build(dataset, **kwargs):
    return DATASETS.build(
        dict(type='transmamba.FractionDataset', dataset=dataset, **kwargs)
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Twelve pictures of class a, six of b, one of c."""
    root = tmp_path_factory.mktemp('pictures')
    value = 0
    for name, count in (('a', 12), ('b', 6), ('c', 1)):
        (root / name).mkdir()
        for i in range(count):
            pixels = np.full((4, 4, 3), value, np.uint8)
            Image.fromarray(pixels).save(root / name / f'{i:02d}.png')
            value += 1
    return root


def pictures(folder, **kwargs):
    return dict(
        type='mmpretrain.CustomDataset',
        data_prefix=str(folder),
        pipeline=[dict(type='LoadImageFromFile')],
        **kwargs,
    )


@pytest.mark.parametrize('lazy', [False, True])
def test_any_data_set_of_mmpretrain(folder, lazy):
    dataset = build(pictures(folder, lazy_init=lazy), fraction=0.5, seed=3)
    assert type(dataset).__name__ == 'CustomDataset'
    assert len(dataset) == 6 + 3 + 1
    labels = dataset.get_gt_labels()
    assert np.bincount(labels).tolist() == [6, 3, 1]
    assert dataset.metainfo['classes'] == ('a', 'b', 'c')
    for i in range(len(dataset)):
        sample = dataset[i]
        value = int(sample['img'].flat[0])
        assert sample['gt_label'] == (value >= 12) + (value >= 18)
        assert sample['gt_label'] == labels[i]
    whole = DATASETS.build(pictures(folder))
    whole_paths = [whole.get_data_info(i)['img_path'] for i in range(19)]
    wanted = stratified_indices(whole.get_gt_labels(), 0.5, 3)
    found = [dataset.get_data_info(i)['img_path'] for i in range(10)]
    assert found == [whole_paths[i] for i in wanted]


def paths_of(dataset):
    infos = map(dataset.get_data_info, range(len(dataset)))
    return {info['img_path'] for info in infos}


def test_shares_of_a_data_set_are_nested(folder):
    found = []
    for fraction in (0.1, 0.4, 0.8):
        dataset = build(pictures(folder), fraction=fraction)
        found.append(
            {
                x['img_path']
                for x in map(dataset.get_data_info, range(len(dataset)))
            }
        )
    assert found[0] < found[1] < found[2]


def test_the_choice_does_not_touch_the_runs_randomness(folder):
    np.random.seed(5)
    wanted = np.random.rand()
    np.random.seed(5)
    build(pictures(folder), fraction=0.5)
    assert np.random.rand() == wanted


def test_fraction_one_changes_nothing(folder):
    dataset = build(pictures(folder), fraction=1)
    assert len(dataset) == 19
    assert len(build(pictures(folder))) == 19
    # Not even loaded, if the data set is lazy.
    lazy = build(pictures(folder, lazy_init=True), fraction=1.0)
    assert not lazy._fully_initialized


@pytest.mark.parametrize(
    'fraction', [0, -0.5, 1.01, float('nan'), None, '1', True]
)
def test_out_of_range(folder, fraction):
    with pytest.raises(ValueError, match='fraction must '):
        build(pictures(folder), fraction=fraction)


def test_digits():
    digits = dict(type='transmamba.Digits', split='train')
    dataset = build(digits, fraction=0.2)
    # Rounded per class.
    assert len(dataset) == 259
    counts = np.bincount(dataset.get_gt_labels())
    assert counts.min() >= 25
    assert counts.max() <= 27


def test_the_rest_is_what_a_share_leaves(folder):
    """Also where the data set is a share itself."""
    part = dict(fraction=0.75, seed=1)
    kept = build(pictures(folder), **part)
    rest = build(pictures(folder), **part, rest=True)
    assert paths_of(kept) | paths_of(rest) == paths_of(
        DATASETS.build(pictures(folder))
    )
    assert not paths_of(kept) & paths_of(rest) and len(rest) == 3 + 1
    inner = dict(
        type='transmamba.FractionDataset', dataset=pictures(folder), **part
    )
    small = build(inner, fraction=1 / 3, seed=5)
    assert paths_of(small) < paths_of(kept) and len(small) == 3 + 2 + 1
    with pytest.raises(ValueError, match='leaves no sample'):
        build(pictures(folder), rest=True)


# ------------------------------------------------- wrappers, and other labels


def wrapped(kind, folder):
    inner = pictures(folder)
    return {
        'repeat': dict(type='RepeatDataset', dataset=inner, times=3),
        'balanced': dict(
            type='ClassBalancedDataset', dataset=inner, oversample_thr=0.5
        ),
        'concat': dict(type='ConcatDataset', datasets=[inner, inner]),
        'fold': dict(
            type='mmpretrain.KFoldDataset', dataset=inner, num_splits=3, seed=0
        ),
        'nested': dict(
            type='RepeatDataset',
            dataset=dict(type='ConcatDataset', datasets=[inner]),
            times=2,
        ),
    }[kind]


@pytest.mark.parametrize(
    'kind', ['repeat', 'balanced', 'concat', 'fold', 'nested']
)
def test_wrappers(folder, kind):
    whole = DATASETS.build(wrapped(kind, folder))
    part = dict(fraction=0.5, seed=2)
    kept = build(wrapped(kind, folder), **part)
    rest = build(wrapped(kind, folder), **part, rest=True)
    assert len(kept) + len(rest) == len(whole)
    assert kept.metainfo['classes'] == ('a', 'b', 'c')
    if kind != 'concat':  # of two sets that hold the same files
        # No repetition of what is trained on is left for validation.
        assert not paths_of(kept) & paths_of(rest)
        assert paths_of(kept) | paths_of(rest) == paths_of(whole)
    if kind in ('repeat', 'nested'):
        times = len(kept) // len(paths_of(kept))
        counts = np.bincount(kept.get_gt_labels()) // times
        assert counts.tolist() == [6, 3, 1]
    batch = next(iter(DataLoader(kept, 2, collate_fn=list)))
    assert [x['gt_label'] for x in batch] == kept.get_gt_labels()[:2].tolist()
    assert [kept.get_cat_ids(0), len(build(wrapped(kind, folder)))] == [
        [kept.get_gt_labels()[0]],
        len(whole),
    ]
    again = dict(type='transmamba.FractionDataset', **part)
    again.update(dataset=wrapped(kind, folder))
    assert paths_of(build(again, fraction=0.5)) < paths_of(kept)
    folds = [
        DATASETS.build(
            dict(
                type='mmpretrain.KFoldDataset',
                dataset=again,
                num_splits=2,
                fold=fold,
            )
        )
        for fold in range(2)
    ]
    assert sum(map(len, folds)) == len(kept)
    # As MMEngine's loaders, samplers and wrappers use it.
    loader = Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type='RepeatDataset', times=2, dataset=again),
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=list,
        )
    )
    assert sum(map(len, loader)) == 2 * len(kept)


def labelled(tmp_path, labels):
    data = [
        dict(
            img_path=f'{index}.png', **({} if x is None else dict(gt_label=x))
        )
        for index, x in enumerate(labels)
    ]
    path = tmp_path / 'labels.json'
    path.write_text(json.dumps(dict(metainfo={}, data_list=data)))
    return dict(type='mmpretrain.MultiLabelDataset', ann_file=str(path))


@pytest.mark.parametrize(
    'labels',
    [
        [[0, 1]] * 10,
        [[i % 2] * (i % 3) for i in range(10)],
        [None] * 10,
        [0, *[None] * 9],
        [{'colour': 1}] * 10,
    ],
)
def test_no_label_or_several_are_drawn_plainly(tmp_path, labels):
    share = build(labelled(tmp_path, labels), fraction=0.4)
    assert len(share) == 4
    assert type(share).__name__ == 'MultiLabelDataset'
    rest = build(labelled(tmp_path, labels), fraction=0.4, rest=True)
    assert not paths_of(share) & paths_of(rest) and len(rest) == 6


@DATASETS.register_module(force=True)
class Squares(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index**2


@DATASETS.register_module(force=True)
class Endless(IterableDataset):
    def __iter__(self):
        return iter(int, 1)


def test_a_data_set_that_is_not_mmengines():
    share = build(dict(type='Squares'), fraction=0.3)
    assert len(share) == 3
    assert {share[i] for i in range(3)} <= {i**2 for i in range(10)}
    assert share.metainfo == {}
    with pytest.raises(ValueError, match='Endless has no length'):
        build(dict(type='Endless'), fraction=0.3)


def test_a_pipeline_may_stand_where_others_read_it(folder):
    inner = pictures(folder)
    pipeline = inner.pop('pipeline')
    share = build(inner, pipeline=pipeline, fraction=0.5)
    assert share[0]['img'].shape == (4, 4, 3)
