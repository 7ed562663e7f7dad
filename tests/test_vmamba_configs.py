# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The configs of configs/vmamba, beyond what test_configs.py asks of all."""

import ast
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from helpers import assert_trains_on_one_batch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

FOLDER = Path(__file__).resolve().parents[1] / 'configs' / 'vmamba'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
STUDENTS = [name for name in NAMES if 'transmamba' in name]
OFFICIAL = [name for name in NAMES if name not in STUDENTS]


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def read(name):
    return Config.fromfile(FOLDER / f'{name}.py')


def in_giga(flops):
    """FLOPs of a metafile in G, as a README prints them."""
    return f'{flops / 1e9:.2f} G'


def test_configs_are_there():
    assert [name.rpartition('_')[2] for name in STUDENTS] == [
        'cifar100',
        'imagenet100',
        'imagenet1k',
    ]
    assert len(OFFICIAL) == 4


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
    per_512 = cfg.optim_wrapper.optimizer.lr * 512 / (gpus * batch)
    assert per_512 == pytest.approx(5e-4)
    classes = 1000 if name.endswith('imagenet1k') else 100
    assert cfg.model.head.num_classes == classes
    assert cfg.data_preprocessor.num_classes == classes
    doc = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text()))
    assert f'NAME={name}\n' in doc
    assert f'configs/vmamba/$NAME.py {gpus}' in doc
    assert 'We have not run this config to completion' in ' '.join(doc.split())


@pytest.mark.parametrize('name', NAMES)
def test_figures_agree_in_metafile_readme_and_docstring(name):
    entries = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    (entry,) = (e for e in entries if e['Name'] == name)
    (reported,) = (v for k, v in entry.items() if k.startswith('Reported'))
    accuracy = reported['Top 1 Accuracy']
    readme = (FOLDER / 'README.md').read_text()
    (row,) = (x for x in readme.splitlines() if f']({name}.py)' in x)
    metadata = entry['Metadata']
    parameters = f'{metadata["Parameters"]:,}'
    figures = f'| {parameters} | {in_giga(metadata["FLOPs"])} |'
    assert f'{figures} {accuracy}, ' in row
    assert f'| {metadata["Training Data"]} |' in row
    doc = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text()))
    (said,) = re.findall(r'([\d.]+) % top-1', doc)
    assert float(said) == accuracy


@pytest.mark.parametrize('name', OFFICIAL)
def test_recipe_of_the_authors(name):
    cfg = read(name)
    optim = cfg.optim_wrapper
    assert optim.optimizer.lr == pytest.approx(1e-3)
    assert optim.optimizer.weight_decay == 0.05
    assert optim.clip_grad.max_norm == 5.0
    warm_up, cosine = cfg.param_scheduler
    assert warm_up.end == 20
    start = optim.optimizer.lr * warm_up.start_factor
    assert start == pytest.approx(5e-7)
    assert cosine.eta_min == 5e-6
    rates = {'tiny': 0.2, 'small': 0.3, 'base': 0.5, 'vanilla': 0.2}
    rate = rates[name.split('-')[1]]
    assert cfg.model.backbone.drop_path_rate == rate
    hooks = cfg.get('custom_hooks') or []
    if 'vanilla' in name:
        assert not hooks
    else:
        (ema,) = hooks
        assert (ema.type, ema.momentum) == ('EMAHook', 1e-4)


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
    # VMamba's authors decay all matrices, TransMamba's baselines spare the
    # state space and the step sizes' biases, which are matrices, too.
    spared = [] if name in OFFICIAL else ['A_logs', 'dt_projs_bias']
    for key, parameter in model.named_parameters():
        leaf = key.rpartition('.')[2]
        free = leaf in spared or parameter.ndim == 1
        assert decay[parameter] == (0 if free else 0.05), key


@pytest.mark.parametrize('name', [STUDENTS[0], OFFICIAL[-1]])
def test_training_on_one_batch(name):
    cfg = read(name)
    cfg.model.backbone.arch = dict(embed_dims=12, depths=(1, 1))
    cfg.model.head.in_channels = 24
    assert_trains_on_one_batch(cfg)
