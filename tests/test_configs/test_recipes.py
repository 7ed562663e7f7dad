# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""All configs: they build, are plain, and are what their names say."""

import re
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
import torch
from config_cases import (
    ALL,
    CONFIGS,
    DISTILLED,
    LARGE,
    OFFICIAL,
    PLAIN,
    RETRIEVAL,
    TOY_VIDEOS,
    TOY_VQA,
    VQA,
    bases,
    build,
    count,
    docstring,
    head_of,
    read,
    student_of,
)
from helpers import ROOT, assert_trains_on_one_batch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS

from transmamba_mm.models import VideoMamba
from transmamba_mm.registry import HOOKS
from transmamba_mm.utils import cli

VIDEO = 'video_mamba/videomamba-middle_8xb128-300e_imagenet1k.py'
VIM = 'vim/vim-tiny_8xb128-300e_imagenet1k.py'
VMAMBA_STUDENT = 'vmamba/vmamba-transmamba-tiny_8xb64-300e_cifar100.py'
VMAMBA_FIRST = 'vmamba/vmamba-vanilla-tiny_8xb128-300e_imagenet1k.py'
BASE = CONFIGS / '_base_'
PAIRS = sorted((BASE / 'pairs').glob('*.py'))

# ------------------------------------------------------------ every config


@pytest.mark.parametrize('name', ALL)
def test_config_is_complete_and_survives_a_dump(name):
    cfg = read(name)
    cli.check_config_keys(cfg)
    assert 'transmamba_mm' in cfg.custom_imports['imports']
    assert cfg.default_scope == 'mmpretrain'
    again = Config.fromstring(cfg.dump(), '.py')
    assert again.to_dict() == cfg.to_dict()


@pytest.mark.parametrize('name', ALL)
def test_model_builds(name):
    assert count(build(read(name)))


@pytest.mark.parametrize('name', ALL)
def test_both_losses_are_explained_by_five_files(name):
    """The config, and the parts it stands on that data and schedule are not.

    One that changes another config is read beside that.
    """

    def closure(path):
        found = {path}
        for base in bases(path):
            found |= closure(base)
        return found

    apart = {'datasets', 'schedules', 'teachers'}
    parts = {
        path.relative_to(BASE)
        for path in closure(CONFIGS / name)
        if BASE in path.parents and path.parent.name not in apart
    }
    parts.discard(Path('default_runtime.py'))
    assert 1 + len(parts) <= 5


# ------------------------------------------------------------ the plain way


@pytest.mark.parametrize(
    'part',
    sorted(
        path.stem
        for path in (BASE / 'models').glob('*.py')
        # One has no backbone, the other no head, and some are no classifiers.
        if path.stem not in ('classifier_224', 'vit_tiny_timm_96')
        and not re.search('clip|llava|minilm|toy', path.stem)
    ),
)
def test_a_recipe_is_its_parts_and_what_differs(part, tmp_path):
    data, schedule = (
        ('digits_16', 'digits_adamw_cosine')
        if 'digits' in part
        else ('cifar100_224', 'adamw_cosine_300e')
    )
    path = tmp_path / 'recipe.py'
    path.write_text(f"""
_base_ = [
    '{BASE}/models/{part}.py',
    '{BASE}/datasets/{data}.py',
    '{BASE}/schedules/{schedule}.py',
    '{BASE}/default_runtime.py',
]
model = dict(head=dict(num_classes=7))
""")
    cfg = Config.fromfile(path)
    cli.check_config_keys(cfg)
    assert head_of(build(cfg)).out_features == 7


@pytest.mark.parametrize(
    'name', [x for x in DISTILLED if x.endswith('imagenet1k.py')]
)
def test_both_heads_of_a_pair(name, tmp_path):
    path = tmp_path / 'recipe.py'
    path.write_text(f"""
_base_ = '{CONFIGS / name}'
model = dict(
    architecture=dict(head=dict(num_classes=7)),
    teacher=dict(head=dict(num_classes=7)))
""")
    model = build(Config.fromfile(path))
    assert head_of(model.student).out_features == 7
    assert head_of(model.teacher).out_features == 7


# ----------------------------------------------- names and what they promise


@pytest.mark.parametrize('data', ['cifar100', 'imagenet100', 'imagenet1k'])
@pytest.mark.parametrize(
    'pair', [p.stem for p in PAIRS if not re.match('clip4clip|llava', p.stem)]
)
def test_each_pair_has_a_distillation_and_a_baseline(pair, data):
    assert f'transmamba/transmamba_{pair}_8xb64-300e_{data}.py' in ALL
    student = pair.split('_')[1].replace('vmamba-', 'vmamba-transmamba-')
    assert [x for x in PLAIN if f'/{student}_' in x and f'_{data}.' in x]


@pytest.mark.parametrize('name', LARGE)
def test_docstring_says_how_to_run_it(name):
    blocks = re.findall(
        r'NAME=(\S+)\n\s+bash (\S+) configs/(\w+)/\$NAME.py (\d)',
        docstring(name),
    )
    assert f'{blocks[-1][2]}/{blocks[-1][0]}.py' == name
    for run, tool, where, gpus in blocks:
        assert (ROOT / tool).is_file()
        assert (CONFIGS / where / f'{run}.py').is_file()
        assert f'_{gpus}xb' in run


@pytest.mark.parametrize('name', LARGE)
def test_name_agrees_with_the_settings(name):
    cfg = read(name)
    gpus, batch, epochs = map(
        int, re.search(r'_(\d)xb(\d+)-(\d+)e_', name).groups()
    )
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    assert cfg.train_cfg.max_epochs == epochs
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.end) == (cosine.begin, epochs)
    if name not in OFFICIAL:
        per_512 = cfg.optim_wrapper.optimizer.lr * 512 / (gpus * batch)
        assert per_512 == pytest.approx(1e-4 if '/deit-' in name else 5e-4)


@pytest.mark.parametrize('name', LARGE)
def test_classes_and_batch_augmentation(name):
    cfg = read(name)
    classes = 1000 if 'imagenet1k' in name else 100
    model = build(cfg)
    for part in {model, student_of(model), getattr(model, 'teacher', model)}:
        if hasattr(part, 'head'):
            assert cfg.data_preprocessor.num_classes == classes
            assert head_of(part).out_features == classes
    # Mixup and CutMix work where the training loop preprocesses.
    augments = model.data_preprocessor.batch_augments.augments
    assert [type(a).__name__ for a in augments] == ['Mixup', 'CutMix']
    assert model.data_preprocessor.num_classes == classes
    # What makes a resumed run exact, and the data share a switch.
    loader = cfg.train_dataloader
    assert loader.persistent_workers is False
    assert loader.worker_init_fn.type == 'transmamba.seed_worker'
    assert loader.dataset.type == 'transmamba.FractionDataset'
    assert loader.dataset.fraction == 1.0


# ----------------------------------------------------- the authors' recipes


class Recipe(NamedTuple):
    lr: float
    decay: float
    drop_path: float
    clip: Optional[float]
    warm_up: int  # epochs
    first: float  # learning rate
    last: float
    ema: Optional[float] = None  # momentum
    repeated: bool = False  # augmentation


VMAMBA = Recipe(1e-3, 0.05, 0.2, 5.0, 20, 5e-7, 5e-6, ema=1e-4)
RECIPES = {
    'plainmamba-l1': Recipe(2e-3, 0.05, 0.2, 5.0, 15, 2e-6, 2e-5),
    'plainmamba-l2': Recipe(2e-3, 0.05, 0.2, 1.0, 20, 2e-6, 2e-5, 1e-4),
    'plainmamba-l3': Recipe(1e-3, 0.05, 0.4, 1.0, 20, 1e-6, 1e-5, 1e-4),
    'vim-tiny': Recipe(1e-3, 0.1, 0.0, None, 5, 1e-6, 1e-5, 4e-5, True),
    'vim-small': Recipe(1e-3, 0.05, 0.05, None, 5, 1e-6, 1e-5, 4e-5, True),
    'videomamba-tiny': Recipe(4e-3, 0.1, 0.0, 5.0, 5, 1e-6, 1e-5),
    'videomamba-small': Recipe(
        *(4e-3, 0.05, 0.15, None, 5, 1e-6, 1e-5), repeated=True
    ),
    'videomamba-middle': Recipe(
        *(1e-3, 0.05, 0.5, 5.0, 20, 1e-6, 5e-6), repeated=True
    ),
    'vmamba-tiny-s1l8': VMAMBA,
    'vmamba-small-s1l20': VMAMBA._replace(drop_path=0.3),
    'vmamba-base-s1l20': VMAMBA._replace(drop_path=0.5),
    'vmamba-vanilla-tiny': VMAMBA._replace(ema=None),
}


def test_every_recipe_of_the_authors_has_a_config():
    assert len(OFFICIAL) == len(RECIPES)


@pytest.mark.parametrize('name', OFFICIAL)
def test_recipe_of_the_authors(name):
    cfg = read(name)
    wanted = RECIPES[re.search(r'/(.+)_\dxb', name)[1]]
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.lr == pytest.approx(wanted.lr)
    assert optimizer.weight_decay == wanted.decay
    assert cfg.model.backbone.drop_path_rate == wanted.drop_path
    clipped = cfg.optim_wrapper.clip_grad
    assert (clipped and clipped.max_norm) == wanted.clip
    warm_up, cosine = cfg.param_scheduler
    assert warm_up.end == wanted.warm_up
    first = optimizer.lr * warm_up.start_factor
    assert first == pytest.approx(wanted.first)
    ratio = cosine.get('eta_min_ratio')
    last = cosine.eta_min if ratio is None else optimizer.lr * ratio
    assert last == pytest.approx(wanted.last)
    hooks = cfg.get('custom_hooks') or []
    assert len(hooks) == (wanted.ema is not None)
    for hook in hooks:
        assert hook.momentum == wanted.ema
        assert isinstance(HOOKS.build(hook), EMAHook)
    sampler = DATA_SAMPLERS.build(
        dict(cfg.train_dataloader.sampler, dataset=list(range(512)))
    )
    drawn = list(sampler)
    # Three copies of an image, one after another, or none.
    assert drawn[:6] == (
        [drawn[0]] * 3 + [drawn[3]] * 3
        if wanted.repeated
        else list(dict.fromkeys(drawn[:6]))
    )


@pytest.mark.parametrize('name', [x for x in PLAIN if x not in OFFICIAL])
def test_moving_average_is_an_option_elsewhere(name):
    assert not read(name).get('custom_hooks')


# ---------------------------------------------------------- what is decayed


def decays(model, cfg):
    """The weight decay of every parameter."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return {
        parameter: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }


# Models of retrieval have the names of CLIP's authors, LLaVA has no decay.
@pytest.mark.parametrize(
    'name', sorted({*ALL} - {*RETRIEVAL, *TOY_VIDEOS, *TOY_VQA, *VQA})
)
def test_weight_decay(name):
    """Not vectors, positions, class tokens; state spaces if authors do."""
    cfg = read(name)
    model = build(cfg)
    decay = decays(model, cfg)
    full = cfg.optim_wrapper.optimizer.weight_decay
    spared = {'pos_embed', 'cls_token', 'bias', 'D', 'D_b'}
    if name not in OFFICIAL or 'plainmamba' in name:
        spared |= {'A_log', 'A_b_log', 'A_logs', 'dt_projs_bias'}
        spared |= {'direction_Bs'}
    found = set()
    for key, parameter in model.named_parameters():
        if not key.startswith('teacher.'):
            free = parameter.ndim == 1 or key.rpartition('.')[2] in spared
            assert decay[parameter] == (0 if free else full), key
            found.add(decay[parameter])
    assert found == {0, full}


@pytest.mark.parametrize('path', sorted((BASE / 'schedules').glob('*.py')))
def test_schedules_name_no_parameters(path):
    options = Config.fromfile(path).optim_wrapper.get('paramwise_cfg', {})
    assert 'custom_keys' not in options


def test_no_decay_of_the_temporal_embedding():
    with torch.device('meta'):
        model = torch.nn.ModuleDict(dict(backbone=VideoMamba(num_frames=8)))
    decay = decays(model, read(VIDEO))
    assert decay[model.backbone.temporal_pos_embedding] == 0


# ----------------------------------------------------------------- training


@pytest.mark.parametrize(
    ('name', 'arch', 'width'),
    [
        (VIDEO, dict(embed_dims=24, num_layers=2), 24),
        (VIM, dict(embed_dims=24, num_layers=2), 24),
        (VMAMBA_STUDENT, dict(embed_dims=12, depths=(1, 1)), 24),
        (VMAMBA_FIRST, dict(embed_dims=12, depths=(1, 1)), 24),
    ],
)
def test_training_on_one_batch(name, arch, width):
    cfg = deepcopy(read(name))
    cfg.model.backbone.arch = arch
    cfg.model.head.in_channels = width
    assert_trains_on_one_batch(cfg)
