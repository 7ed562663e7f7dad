# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""configs/vim and configs/video_mamba, beyond what test_configs.py asks."""

import ast
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from helpers import assert_trains_on_one_batch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, DefaultScope
from mmpretrain.registry import MODELS

from transmamba_mm.models import VideoMamba

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
NAMES = sorted(
    f'{folder}/{path.stem}'
    for folder in ('vim', 'video_mamba')
    for path in (CONFIGS / folder).glob('*.py')
)
# Recipes of the models' authors; the others are TransMamba's baselines.
OFFICIAL = [name for name in NAMES if 'imagenet1k' in name]


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def read(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


@pytest.mark.parametrize('name', NAMES)
def test_name_and_docstring_agree_with_the_settings(name):
    cfg = read(name)
    pattern = r'_(\d)xb(\d+)-(\d+)e_'
    gpus, batch, epochs = map(int, re.search(pattern, name).groups())
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    assert cfg.train_cfg.max_epochs == epochs
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.end) == (cosine.begin, epochs)
    text = (CONFIGS / f'{name}.py').read_text()
    doc = ast.get_docstring(ast.parse(text))
    folder, stem = name.split('/')
    assert f'NAME={stem}\n' in doc
    assert f'configs/{folder}/$NAME.py {gpus}' in doc
    assert 'We have not run this config to completion' in ' '.join(doc.split())
    metafile = yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text())
    (entry,) = (e for e in metafile['Models'] if e['Name'] == stem)
    assert entry['Metadata']['FLOPs']
    readme = (CONFIGS / folder / 'README.md').read_text()
    (row,) = (x for x in readme.splitlines() if f']({stem}.py)' in x)
    reported = [v for k, v in entry.items() if k.startswith('Reported')]
    if not reported:
        assert row.endswith(' | \N{EN DASH} |')
        return
    # As printed in the papers, with or without a last zero.
    accuracy = rf'{reported[0]["Top 1 Accuracy"]}0?'
    assert re.search(rf' G \| {accuracy}, ', row)
    assert re.search(rf' {accuracy} % top-1', doc)


# lr, weight decay, drop path, clipping, epochs of warm-up, least lr, EMA,
# repeated augmentation.
RECIPES = {
    'vim/vim-tiny': (1e-3, 0.1, 0.0, None, 5, 1e-5, True, True),
    'vim/vim-small': (1e-3, 0.05, 0.05, None, 5, 1e-5, True, True),
    'video_mamba/videomamba-tiny': (
        *(4e-3, 0.1, 0.0, 5.0, 5, 1e-5, False, False),
    ),
    'video_mamba/videomamba-small': (
        *(4e-3, 0.05, 0.15, None, 5, 1e-5, False, True),
    ),
    'video_mamba/videomamba-middle': (
        *(1e-3, 0.05, 0.5, 5.0, 20, 5e-6, False, True),
    ),
}


@pytest.mark.parametrize('name', OFFICIAL)
def test_recipe_of_the_authors(name):
    cfg = read(name)
    optimizer = cfg.optim_wrapper.optimizer
    lr, decay, drop_path, clip, epochs, least, averaged, repeated = RECIPES[
        name.partition('_8xb')[0]
    ]
    assert optimizer.lr == pytest.approx(lr)
    assert optimizer.weight_decay == decay
    assert cfg.model.backbone.drop_path_rate == drop_path
    clipped = cfg.optim_wrapper.clip_grad
    assert (clipped and clipped.max_norm) == clip
    warm_up, cosine = cfg.param_scheduler
    assert warm_up.end == epochs
    assert optimizer.lr * warm_up.start_factor == pytest.approx(1e-6)
    assert cosine.eta_min == least
    hooks = cfg.get('custom_hooks') or []
    assert [(h.type, h.momentum) for h in hooks] == (
        [('EMAHook', 4e-5)] if averaged else []
    )
    sampler = DATA_SAMPLERS.build(
        dict(cfg.train_dataloader.sampler, dataset=list(range(512)))
    )
    if not repeated:
        assert isinstance(sampler, DefaultSampler)
        return
    drawn = list(sampler)
    # Three copies of an image, one after another.
    assert drawn[:6] == [drawn[0]] * 3 + [drawn[3]] * 3


@pytest.mark.parametrize('name', NAMES)
def test_weight_decay(name):
    cfg = read(name)
    with torch.device('meta'):
        model = MODELS.build(deepcopy(cfg.model))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {
        parameter: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    full = cfg.optim_wrapper.optimizer.weight_decay
    spared = ['pos_embed', 'cls_token', 'bias', 'D', 'D_b']
    # The authors decay the state space, TransMamba's baselines do not.
    spared += [] if name in OFFICIAL else ['A_log', 'A_b_log']
    for key, parameter in model.named_parameters():
        leaf = key.rpartition('.')[2]
        free = leaf in spared or parameter.ndim == 1
        assert decay[parameter] == (0 if free else full), key


def test_no_decay_of_the_temporal_embedding():
    cfg = read(OFFICIAL[0])
    with torch.device('meta'):
        model = VideoMamba(num_frames=8)
    model = torch.nn.ModuleDict(dict(backbone=model))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    (decay,) = (
        group['weight_decay']
        for group in wrapper.optimizer.param_groups
        if any(
            parameter is model.backbone.temporal_pos_embedding
            for parameter in group['params']
        )
    )
    assert decay == 0


def test_autoaugment_takes_the_place_of_randaugment():
    steps, others = (
        [step.type for step in read(f'video_mamba/{name}').train_pipeline]
        for name in (
            'videomamba-tiny_8xb512-300e_imagenet1k',
            'videomamba-small_8xb512-300e_imagenet1k',
        )
    )
    assert others.index('RandAugment') == steps.index('AutoAugment')
    assert len(steps) == len(others)
    cfg = read('video_mamba/videomamba-tiny_8xb512-300e_imagenet1k')
    assert cfg.train_dataloader.dataset.dataset.pipeline == cfg.train_pipeline


@pytest.mark.parametrize('name', [OFFICIAL[0], OFFICIAL[-1]])
def test_training_on_one_batch(name):
    cfg = read(name)
    cfg.model.backbone.arch = dict(embed_dims=24, num_layers=2)
    cfg.model.head.in_channels = 24
    assert_trains_on_one_batch(cfg)
