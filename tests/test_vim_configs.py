# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The configs of configs/vim, beyond what test_configs.py asks of all."""

import ast
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

FOLDER = Path(__file__).resolve().parents[1] / 'configs' / 'vim'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
OFFICIAL = [name for name in NAMES if 'imagenet1k' in name]


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def read(name):
    return Config.fromfile(FOLDER / f'{name}.py')


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
    doc = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text()))
    assert f'NAME={name}\n' in doc
    assert f'configs/vim/$NAME.py {gpus}' in doc
    assert 'We have not run this config to completion' in ' '.join(doc.split())
    entries = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    (entry,) = (e for e in entries if e['Name'] == name)
    (reported,) = (v for k, v in entry.items() if k.startswith('Reported'))
    accuracy = reported['Top 1 Accuracy']
    readme = (FOLDER / 'README.md').read_text()
    (row,) = (x for x in readme.splitlines() if f']({name}.py)' in x)
    assert f' {entry["Metadata"]["Parameters"]:,} | {accuracy}, ' in row
    assert f'{accuracy} % top-1' in doc


@pytest.mark.parametrize('name', OFFICIAL)
def test_recipe_of_the_authors(name):
    cfg = read(name)
    optimizer = cfg.optim_wrapper.optimizer
    small = 'small' in name
    assert optimizer.lr == pytest.approx(1e-3)
    assert optimizer.weight_decay == (0.05 if small else 0.1)
    assert cfg.model.backbone.drop_path_rate == (0.05 if small else 0.0)
    assert cfg.optim_wrapper.clip_grad is None
    (ema,) = cfg.custom_hooks
    assert (ema.type, ema.momentum) == ('EMAHook', 4e-5)
    sampler = DATA_SAMPLERS.build(
        dict(cfg.train_dataloader.sampler, dataset=list(range(512)))
    )
    assert not isinstance(sampler, DefaultSampler)
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
    # Vim's authors decay the state space, TransMamba's baselines do not.
    spared += [] if name in OFFICIAL else ['A_log', 'A_b_log']
    for key, parameter in model.named_parameters():
        leaf = key.rpartition('.')[2]
        free = leaf in spared or parameter.ndim == 1
        assert decay[parameter] == (0 if free else full), key


def test_training_on_one_batch():
    cfg = read(NAMES[-1])
    cfg.model.backbone.arch = dict(embed_dims=24, num_layers=2)
    cfg.model.head.in_channels = 24
    cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    model.init_weights()
    std = model.head.fc.weight.std().item()
    assert std == pytest.approx(0.02, rel=0.1)
    model.train()
    batch = dict(
        inputs=[torch.randint(0, 256, (3, 64, 64)) for _ in range(2)],
        data_samples=[DataSample().set_gt_label(i) for i in range(2)],
    )
    data = model.data_preprocessor(batch, training=True)
    total, _ = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
