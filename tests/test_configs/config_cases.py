# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which configs there are, and how the tests read and build them."""

import ast
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import mmpretrain
import torch
from helpers import CONFIGS
from mmengine.config import Config
from mmengine.fileio import load
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

ALL = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if not {'_base_', 'arena'} & set(path.parts)
)
#: Classifiers at 224 pixels.
LARGE = [
    name
    for name in ALL
    if not name.startswith(('quickstart/', 'retrieval/', 'vqa/'))
]
RETRIEVAL = [name for name in ALL if name.startswith('retrieval/')]
VQA = [name for name in ALL if name.startswith('vqa/')]
TOY_VIDEOS = [name for name in ALL if 'toy-videos' in name]
TOY_VQA = [name for name in ALL if 'toy-vqa' in name]
DISTILLED = [name for name in LARGE if '/transmamba_' in name]
PLAIN = [name for name in LARGE if name not in DISTILLED]
#: Recipes of the models' authors; all others have TransMamba's settings.
OFFICIAL = [
    name
    for name in PLAIN
    if 'imagenet1k' in name and not re.search('/pmamba|-transmamba-', name)
]
#: One per data set.
DATA = [
    f'plain_mamba/pmamba-tiny_8xb64-300e_{data}.py'
    for data in ('cifar100', 'imagenet100', 'imagenet1k')
]
TINY = 'transmamba/transmamba_deit-tiny_pmamba-tiny_8xb64-300e_{}.py'


@cache
def read(name):
    """The config, not to be changed."""
    return Config.fromfile(CONFIGS / name)


def build(cfg, device='meta'):
    """The model, as the Runner builds it.

    PyTorch's meta device takes no memory. Bytes stand for tokenizers that
    are files, other settings for language models that are, a small tower for
    text encoders that are; towers of images have no weights.
    """
    model = deepcopy(cfg.model)
    for part in (model, model.get('architecture'), model.get('teacher')):
        if part and 'Transformers' in part.get('text_encoder', {}).get(
            'type', ''
        ):
            arch = dict(embed_dims=64, num_layers=1, num_heads=1)
            arch['out_channels'] = part.head.text_channels
            part.text_encoder = dict(
                type='transmamba.CLIPTextTower', arch=arch
            )
        if part and 'tokenizer' in part:
            part.tokenizer = dict(type='transmamba.ByteTokenizer')
        if part and isinstance(
            part.get('lang_encoder', {}).get('name_or_path'), str
        ):
            llava = read('_base_/teachers/llava_llama3_2_3b.py').teacher
            part.lang_encoder = deepcopy(llava.lang_encoder)
        if part:  # of timm
            part.get('vision_encoder', {}).pop('checkpoint_path', None)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    with torch.device(device):
        return MODELS.build(model)


def student_of(model):
    return getattr(model, 'student', model)


def head_of(classifier):
    head = classifier.head
    return head.fc if hasattr(head, 'fc') else head.layers.head


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def mixed_batch(model):
    """Two random pictures, as the training loop gives them to the model."""
    batch = dict(
        inputs=[torch.randint(0, 256, (3, 64, 64)) for _ in range(2)],
        data_samples=[DataSample().set_gt_label(i) for i in range(2)],
    )
    return model.data_preprocessor(batch, training=True)


def docstring(name):
    return ast.get_docstring(ast.parse((CONFIGS / name).read_text()))


def bases(path):
    """The files that a config file names as its bases."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            names = ast.literal_eval(node.value)
            names = [names] if isinstance(names, str) else names
            return [(path.parent / name).resolve() for name in names]
    return []


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


def zoo_weights(arch):
    """What mmpretrain's own metafile names for a DeiT on ImageNet-1k."""
    name = {
        'deit-tiny': 'deit-tiny_4xb256_in1k',
        'deit-small': 'deit-small_4xb256_in1k',
        'deit-base': 'deit-base_3rdparty_in1k',
    }[arch]
    zoo = Path(mmpretrain.__file__).parent / '.mim/configs/deit/metafile.yml'
    models = load(str(zoo))['Models']
    return next(m['Weights'] for m in models if m['Name'] == name)
