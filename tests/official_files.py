# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Small checkpoint files as the authors of the backbones write them."""

import pytest
import torch
from mmengine.config import Config

from transmamba_mm.apis import convert_official
from transmamba_mm.compat.environment import version_tuple
from transmamba_mm.registry import MODELS

restricts_pickles = pytest.mark.skipif(
    version_tuple(torch.__version__) < (2, 6),
    reason='older versions of PyTorch read any pickle',
)

CLASSES = 3
DIMS = 16
SIDE = 8  # patches; the smallest grid whose embedding is evidence
FLAT = dict(
    arch=dict(embed_dims=DIMS, num_layers=2), img_size=4 * SIDE, patch_size=4
)
STAGES = dict(
    arch=dict(embed_dims=8, depths=(1, 2), mlp_ratio=2), img_size=4 * SIDE
)
BACKBONES = dict(
    plainmamba=dict(type='transmamba.PlainMamba', **FLAT),
    vim=dict(type='transmamba.VisionMamba', **FLAT),
    vmamba=dict(type='transmamba.VMamba', **STAGES),
    videomamba=dict(type='transmamba.VideoMamba', **FLAT),
)
FILES = dict(
    plainmamba='l1.pth',
    vim='vim_t_midclstok_76p1acc.pth',
    vmamba='vssm1_tiny_0230s_ckpt_epoch_264.pth',
    videomamba='videomamba_t16_in1k_res224.pth',
)
#: What the files call a classifier's tensors; the first that fits holds.
OFFICIAL_NAMES = dict(
    plainmamba=[],
    vim=[('backbone.', ''), ('head.fc.', 'head.')],
    videomamba=[('backbone.', ''), ('head.fc.', 'head.')],
    vmamba=[
        ('backbone.norm.', 'classifier.norm.'),
        ('backbone.', ''),
        ('head.fc.', 'classifier.head.'),
    ],
)
families = pytest.mark.parametrize('family', BACKBONES)
lookalikes = pytest.mark.parametrize(
    ('family', 'other'), [('vim', 'videomamba'), ('videomamba', 'vim')]
)


def classifier(family, classes=CLASSES, init_cfg=None, **backbone):
    backbone = {**BACKBONES[family], **backbone}
    width = backbone['arch']['embed_dims']
    if 'depths' in backbone['arch']:
        width *= 2 ** (len(backbone['arch']['depths']) - 1)
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        head=dict(
            type='LinearClsHead', num_classes=classes, in_channels=width
        ),
        init_cfg=init_cfg,
    )


def build(config, seed=0):
    """A model whose every tensor differs from its start value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS.build(config).eval()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def official_names(family, model):
    """The state dict of a classifier as the authors name it."""
    renamed = {}
    for key, value in model.state_dict().items():
        for new, old in OFFICIAL_NAMES[family]:
            if key.startswith(new):
                key = old + key[len(new) :]
                break
        renamed[key] = value.clone()
    return renamed


def official_file(folder, family, model, name=None, **content):
    """A file as the authors wrote it; returns its path."""
    tensors = official_names(family, model)
    path = folder / (name or FILES[family])
    wrapper = 'model'
    if family == 'plainmamba':
        wrapper = 'state_dict'
        content.setdefault('meta', dict(epoch=300, CLASSES=['a', 'b', 'c']))
        tensors.update(
            {
                f'ema_{key.replace(".", "_")}': value + 1
                for key, value in list(tensors.items())
                if value.is_floating_point()
            }
        )
    content = {
        wrapper: tensors,
        'optimizer': dict(state={}, param_groups=[dict(lr=1e-3)]),
        'epoch': 299,
        **content,
    }
    torch.save(content, path)
    return str(path)


def config_file(folder, config):
    path = folder / 'config.py'
    Config(dict(model=config, default_scope='mmpretrain')).dump(str(path))
    return str(path)


def convert(folder, path, config, **kwargs):
    out = str(folder / 'out' / 'converted.pth')
    result = convert_official(path, config_file(folder, config), out, **kwargs)
    assert result == out
    return out


def assert_same_logits(model, other, size=4 * SIDE):
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), other.eval()(images))


def assert_same_features(model, other):
    images = torch.rand(2, 3, 4 * SIDE, 4 * SIDE)
    with torch.no_grad():
        for one, two in zip(model.eval()(images), other.eval()(images)):
            assert torch.equal(one, two)


def positions(side, dims, place, noise, seed):
    """A position embedding as training makes it: smooth over the grid."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(0, 1, side)
    grid = torch.cartesian_prod(line, line)
    waves = 3 * torch.randn(2, dims, generator=generator)
    phases = 6.3 * torch.rand(dims, generator=generator)
    patches = (grid @ waves + phases).cos()
    patches += noise * torch.randn(side**2, dims, generator=generator)
    class_row = torch.randn(1, dims, generator=generator)
    slot = dict(head=0, middle=side**2 // 2)[place]
    return torch.cat((patches[:slot], class_row, patches[slot:]))[None]
