# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Small VideoMambas, their inputs, and classifiers of any size."""

import math

import torch
from helpers import TINY_CLASSES, randomise

from transmamba_mm.models import VideoMamba

DIRECTIONS = ('raster', 'raster_reverse')
DIMS, STEPS, GRID = 16, 4, (4, 4, 4)
TOKENS = 1 + math.prod(GRID)


def backbone(seed=0, depth=2, **kwargs):
    """A video model of four frames with 4x4 patches."""
    kwargs.setdefault('arch', dict(embed_dims=DIMS, num_layers=depth))
    kwargs.setdefault('img_size', 16)
    kwargs.setdefault('num_frames', STEPS)
    kwargs['mixer_cfg'] = dict(d_state=4, **kwargs.get('mixer_cfg', {}))
    torch.manual_seed(seed)
    net = VideoMamba(**{'patch_size': 4, **kwargs})
    randomise(net, seed)
    return net.eval()


def image_backbone(**kwargs):
    return backbone(num_frames=None, **kwargs)


def classifier(arch, classes, dims, **kwargs):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='transmamba.VideoMamba', arch=arch, **kwargs),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=dims),
    )


def tiny_student(**kwargs):
    return classifier(
        dict(embed_dims=12, num_layers=2),
        TINY_CLASSES,
        12,
        img_size=16,
        patch_size=4,
        mixer_cfg=dict(d_state=4),
        **kwargs,
    )


def videos(frames=STEPS, height=16, width=16, batch=2):
    return torch.randn(batch, 3, frames, height, width)


def some_mask(kept=20, length=TOKENS, batch=2, seed=3):
    """Keeps the class token and as many patches in each row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[:, 0] = False
    for row in mask:
        order = torch.randperm(length - 1, generator=generator)
        row[1 + order[:kept]] = False
    return mask
