# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The data sets and pipelines of the configs, without the data."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from config_cases import ALL, DATA, VQA, read
from mmengine.dataset import Compose
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, TRANSFORMS
from PIL import Image

from transmamba_mm.datasets.toy_videos import vocabulary
from transmamba_mm.models.clip import tokenizer

EVALUATED = [name for name in ALL if name not in VQA]


@pytest.mark.parametrize('name', EVALUATED)
def test_types_of_the_data_exist_without_data(name, tmp_path, monkeypatch):
    cfg = read(name)
    # Of a tokenizer, the vocabulary belongs to the data.
    (tmp_path / 'merges.txt').write_text(vocabulary())
    monkeypatch.setattr(
        tokenizer, 'find_vocabulary', lambda path: str(tmp_path / 'merges.txt')
    )
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[loader].dataset
        while 'dataset' in dataset:
            assert DATASETS.get(dataset.type) is not None, dataset.type
            dataset = dataset.dataset
        assert DATASETS.get(dataset.type) is not None, dataset.type
        Compose([TRANSFORMS.build(step) for step in dataset.pipeline])


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (DATA[0], 'Cannot find CIFAR100 dataset in data/cifar100'),
        (DATA[1], 'data/imagenet100/train'),
        (DATA[2], 'data/imagenet/train'),
    ],
)
def test_missing_data_are_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((RuntimeError, FileNotFoundError), match=message):
        Runner.build_dataloader(read(name).train_dataloader)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Two classes of four pictures, a folder each."""
    root = tmp_path_factory.mktemp('imagenet100')
    rng = np.random.default_rng(0)
    for part in ('train', 'val'):
        for label in ('a', 'b'):
            (root / part / label).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels)
                picture.save(root / part / label / f'{i}.png')
    return root


def test_half_of_a_folder_tree_through_a_worker(pictures):
    cfg = deepcopy(read(DATA[1]))
    # As --cfg-options does.
    cfg.merge_from_dict({'train_dataloader.dataset.fraction': 0.5})
    loader = cfg.train_dataloader
    loader.dataset.dataset.data_root = str(pictures)
    loader.update(batch_size=4, num_workers=1)
    (batch,) = Runner.build_dataloader(loader, seed=0)
    assert {tuple(image.shape) for image in batch['inputs']} == {(3, 224, 224)}
    labels = [int(sample.gt_label) for sample in batch['data_samples']]
    assert sorted(labels) == [0, 0, 1, 1]


@pytest.mark.parametrize('name', DATA)
def test_pipelines_run(name, pictures):
    cfg = read(name)
    for steps in (cfg.train_pipeline, cfg.test_pipeline):
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        for seed in range(5):
            np.random.seed(seed)
            sample = dict(img_path=str(pictures / 'val/a/0.png'), gt_label=1)
            if 'cifar' in name:
                sample['img'] = np.full((32, 32, 3), seed, dtype=np.uint8)
            packed = pipeline(sample)
            assert packed['inputs'].shape == (3, 224, 224)
            assert packed['inputs'].dtype == torch.uint8


@pytest.mark.parametrize('name', EVALUATED)
def test_loaders_have_the_pipelines_of_their_names(name):
    cfg = read(name)
    dataset = cfg.train_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    assert dataset.pipeline == cfg.train_pipeline
    assert cfg.val_dataloader.dataset.pipeline == cfg.test_pipeline
    assert cfg.test_dataloader == cfg.val_dataloader


def test_cifar_differs_in_loading_and_the_order_of_colours():
    steps, others = (read(name).train_pipeline for name in DATA[:2])
    assert others[0].type == 'LoadImageFromFile'
    swapped = deepcopy(others[1:])
    swapped[2].hparams.pad_val.reverse()
    swapped[3].fill_color.reverse()
    swapped[3].fill_std.reverse()
    assert steps == swapped


def test_autoaugment_takes_the_place_of_randaugment():
    steps, others = (
        [step.type for step in read(f'video_mamba/{name}').train_pipeline]
        for name in (
            'videomamba-tiny_8xb512-300e_imagenet1k.py',
            'videomamba-small_8xb512-300e_imagenet1k.py',
        )
    )
    assert others.index('RandAugment') == steps.index('AutoAugment')
    assert len(steps) == len(others)
