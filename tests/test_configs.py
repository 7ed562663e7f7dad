# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""All configs: they build, and say about themselves what is true.

Models are built on PyTorch's meta device, which takes no memory, except where
a test computes something.
"""

import ast
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.fileio import load as load_file
from mmengine.hooks import EMAHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from PIL import Image
from torch import nn

from transmamba_mm.apis import get_flops
from transmamba_mm.registry import HOOKS
from transmamba_mm.utils import cli

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
ALL = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
PAPER = [
    name for name in ALL if name.split('/')[0] in ('transmamba', 'plain_mamba')
]
DISTILLED = [name for name in PAPER if '/transmamba_' in name]
# One per data set.
DATA = [
    f'plain_mamba/pmamba-tiny_8xb64-300e_{data}.py'
    for data in ('cifar100', 'imagenet100', 'imagenet1k')
]
TINY = 'transmamba/transmamba_deit-tiny_pmamba-tiny_8xb64-300e_{}.py'
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
METAFILES = INDEX['Import']


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@cache
def read(name):
    return Config.fromfile(CONFIGS / name)


def build(cfg, device='meta'):
    """The model, as the Runner builds it."""
    model = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    with torch.device(device):
        return MODELS.build(model)


def student_of(model):
    return getattr(model, 'student', model)


def student_config(name):
    model = read(name).model
    return model.get('architecture', model)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


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
def test_types_of_the_data_exist_without_data(name):
    cfg = read(name)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[loader].dataset
        while 'dataset' in dataset:
            assert DATASETS.get(dataset.type) is not None, dataset.type
            dataset = dataset.dataset
        assert DATASETS.get(dataset.type) is not None, dataset.type
        Compose([TRANSFORMS.build(step) for step in dataset.pipeline])


# ----------------------------------------------- the configs of the papers


@pytest.mark.parametrize('name', PAPER)
def test_docstring_says_how_to_run_it_and_that_we_did_not(name):
    doc = ast.get_docstring(ast.parse((CONFIGS / name).read_text()))
    blocks = re.findall(
        r'NAME=(\S+)\n\s+bash (\S+) configs/(\w+)/\$NAME.py (\d)', doc
    )
    assert f'{blocks[-1][2]}/{blocks[-1][0]}.py' == name
    for run, tool, where, gpus in blocks:
        assert (ROOT / tool).is_file()
        assert (CONFIGS / where / f'{run}.py').is_file()
        assert f'_{gpus}xb' in run
    assert 'We have not run this config to completion' in ' '.join(doc.split())


@pytest.mark.parametrize('name', PAPER)
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
    per_512 = cfg.optim_wrapper.optimizer.lr * 512 / (gpus * batch)
    assert per_512 == pytest.approx(1e-4 if '/deit-' in name else 5e-4)


@pytest.mark.parametrize('name', PAPER)
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


def readme_row(name):
    """The line of a folder's README.md that links to a config."""
    folder, file = name.split('/')
    readme = (CONFIGS / folder / 'README.md').read_text(encoding='utf-8')
    (row,) = (
        line
        for line in readme.splitlines()
        if line.startswith('|') and f']({file})' in line
    )
    return row


def head_of(classifier):
    head = classifier.head
    return head.fc if hasattr(head, 'fc') else head.layers.head


@pytest.mark.parametrize('name', DISTILLED)
def test_teacher_checkpoint_is_the_output_of_a_config(name):
    cfg = read(name)
    ckpt = cfg.model.teacher_ckpt
    assert [hook.type for hook in cfg.custom_hooks] == [
        'transmamba.SubcloneInitializer'
    ]
    if '://' in ckpt:
        assert ckpt == zoo_weights(cfg.model.teacher.backbone.arch)
        return
    config, epochs = re.fullmatch(
        r'work_dirs/(.+)/epoch_(\d+)\.pth', ckpt
    ).groups()
    teacher = read(f'transmamba/{config}.py')
    assert teacher.train_cfg.max_epochs == int(epochs)
    assert teacher.model.to_dict() == cfg.model.teacher.to_dict()
    assert teacher.load_from == zoo_weights(teacher.model.backbone.arch)
    assert name.endswith(f'_{config.rpartition("_")[2]}.py'), 'same data'


def teacher_arch(cfg):
    return cfg.model.teacher.backbone.arch


def zoo_weights(arch):
    """What mmpretrain's own metafile names for a DeiT on ImageNet-1k."""
    name = {
        'deit-tiny': 'deit-tiny_4xb256_in1k',
        'deit-small': 'deit-small_4xb256_in1k',
        'deit-base': 'deit-base_3rdparty_in1k',
    }[arch]
    zoo = Path(mmpretrain.__file__).parent / '.mim/configs/deit/metafile.yml'
    models = load_file(str(zoo))['Models']
    return next(m['Weights'] for m in models if m['Name'] == name)


def test_no_decay_for_norms_biases_positions_and_the_state_space():
    cfg = read(TINY.format('imagenet1k'))
    model = build(cfg, 'cpu')
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {
        parameter: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    norms = {
        f'{path}.{name}'
        for path, module in model.student.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))
        for name, _ in module.named_parameters()
    }
    spared = ('pos_embed', 'A_log', 'D', 'direction_Bs', 'bias')
    seen = set()
    for name, parameter in model.student.named_parameters():
        last = name.rpartition('.')[2]
        free = name in norms or last in spared
        assert decay[parameter] == (0 if free else 0.05), name
        seen.add(last)
    assert {*spared, 'weight'} <= seen
    for parameter in model.distiller.parameters():
        assert decay[parameter] == (0.05 if parameter.ndim > 1 else 0)


def test_settings_of_the_distillation_guide():
    guide = (ROOT / 'docs/guides/distillation.md').read_text(encoding='utf-8')
    (block,) = re.findall(r'```python\n(.+?)```', guide, re.DOTALL)
    cfg = deepcopy(read(TINY.format('cifar100')))
    settings = Config.fromstring(block, '.py').to_dict()
    cfg.merge_from_dict(dict(model=settings))
    distiller = build(cfg).distiller
    recorder = distiller.teacher_recorders.get_recorder('tokens')
    assert recorder.source == r'backbone\.layers\.\d+|backbone\.ln1'
    loss = distiller.distill_losses['loss_transmamba']
    assert loss.teacher_layers == 'uniform'


@pytest.mark.parametrize(
    'variant',
    [
        'deit-tiny_pmamba-tiny_8xb64-300e_cifar100',
        'deit-tiny_pmamba-tiny_8xb64-300e_imagenet1k',
        'deit-tiny_pmamba-tiny_ffn4-patch-stem_8xb64-300e_cifar100',
        'deit-tiny_pmamba-tiny_uniform-layers_8xb64-300e_cifar100',
        'deit-tiny_vim-tiny_8xb64-300e_cifar100',
        'deit-tiny_vim-tiny_d12-ffn4_8xb64-300e_cifar100',
        'deit-base_vmamba-tiny_8xb64-300e_cifar100',
    ],
)
def test_distilling_one_batch(variant, tmp_path):
    """From the teacher's checkpoint through subcloning to gradients."""
    name = f'transmamba/transmamba_{variant}.py'
    cfg = deepcopy(read(name))
    classes = cfg.data_preprocessor.num_classes
    teacher = MODELS.build(cfg.model.teacher)
    cfg.model.teacher_ckpt = str(tmp_path / 'teacher.pth')
    torch.save(teacher.state_dict(), cfg.model.teacher_ckpt)

    model = build(cfg, 'cpu')
    model.init_weights()
    (hook,) = cfg.custom_hooks
    if 'reference_ckpt' in hook:
        assert hook.reference_ckpt == zoo_weights(teacher_arch(cfg))
        hook.update(reference_ckpt=cfg.model.teacher_ckpt)
    plan = HOOKS.build(hook).make_plan(model)
    plan.apply(model.student)
    share = f'{plan.copied:,} of {plan.total:,} ({plan.coverage:.1f} %)'
    assert f' {share} |' in readme_row(name)
    state, student = teacher.state_dict(), model.student.state_dict()
    copied = {e.name: e.source for e in plan.entries if e.rule == 'copy'}
    sources = {e.source for e in plan.entries}
    assert 'backbone.ln1.weight' in copied.values()
    assert 'head.fc.weight' in copied, 'as many classes'
    hierarchical = 'vmamba' in variant
    assert ('backbone.pos_embed' in sources) == (not hierarchical)
    assert ('backbone.layers.0.ffn.layers.1.weight' in sources) == (
        'ffn4' in variant or hierarchical
    )
    for target, source in copied.items():
        if not target.endswith('pos_embed'):  # class tokens differ
            assert torch.equal(student[target], state[source]), target

    model.train()
    batch = dict(
        inputs=[torch.randint(0, 256, (3, 64, 64)) for _ in range(2)],
        data_samples=[DataSample().set_gt_label(i) for i in range(2)],
    )
    data = model.data_preprocessor(batch, training=True)
    assert data['data_samples'][0].gt_score.shape == (classes,), 'mixed'
    total, logged = model.parse_losses(model(**data, mode='loss'))
    assert {'student.loss', 'distill.loss_transmamba'} <= set(logged)
    total.backward()
    assert torch.isfinite(total)
    for key, parameter in model.student.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert all(p.grad is not None for p in model.distiller.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())


def test_moving_average_is_an_option_that_two_recipes_use():
    cfg = read('plain_mamba/plainmamba-l2_8xb256-300e_imagenet1k.py')
    (hook,) = cfg.custom_hooks
    assert isinstance(HOOKS.build(hook), EMAHook)
    (hook,) = read(
        'plain_mamba/plainmamba-l3_4xb256-300e_imagenet1k.py'
    ).custom_hooks
    assert hook.type == 'EMAHook'
    assert not read(DATA[0]).get('custom_hooks')


# --------------------------------------------------------------- the data


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


# ---------------------------------------------------------- the metafiles


def entries():
    for path in METAFILES:
        for model in yaml.safe_load((ROOT / path).read_text())['Models']:
            yield pytest.param(model, id=model['Name'])


@pytest.mark.parametrize('metafile', METAFILES)
def test_metafile_lists_every_config_of_its_folder(metafile):
    content = yaml.safe_load((ROOT / metafile).read_text())
    folder = (ROOT / metafile).parent
    configs = [model['Config'] for model in content['Models']]
    names = [model['Name'] for model in content['Models']]
    assert sorted(configs) == sorted(
        path.relative_to(ROOT).as_posix() for path in folder.glob('*.py')
    )
    assert names == [Path(config).stem for config in configs]
    collections = {c['Name']: c for c in content['Collections']}
    for model in content['Models']:
        assert model['In Collection'] in collections
    for collection in collections.values():
        if 'README' in collection:
            assert (ROOT / collection['README']).is_file()


@pytest.mark.parametrize('entry', list(entries()))
def test_metafile_counts_and_claims(entry):
    assert entry['Weights'] is None
    assert [result['Metrics'] for result in entry['Results']] == [None]
    name = Path(entry['Config']).relative_to('configs').as_posix()
    model = student_of(build(read(name)))
    assert count(model) == entry['Metadata']['Parameters']
    if 'FLOPs' in entry['Metadata']:
        flops = macs(repr(student_config(name).to_dict()))
        assert flops == entry['Metadata']['FLOPs']
        assert f' {count(model):,} | {flops / 1e9:.2f} G |' in readme_row(name)


@cache
def macs(student):
    """Multiply-accumulates of one image, of a model given by its config."""
    with torch.device('meta'):
        model = MODELS.build(ast.literal_eval(student))
    # Values do not matter, so there is nothing to initialise.
    return get_flops(model.to_empty(device='cpu'))


def test_sizes_of_the_papers_table():
    """PMamba-T/S/B of Table 1: 4.1, 13.7 and 49.5 M without the head."""
    sizes = {}
    for width in ('tiny', 'small', 'base'):
        name = f'plain_mamba/pmamba-{width}_8xb64-300e_cifar100.py'
        sizes[width] = count(build(read(name)).backbone)
    assert sizes == dict(tiny=4150848, small=13746816, base=49527552)
