# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Small Vims, and classifiers of any size."""

import torch
from helpers import TINY_CLASSES, randomise

from transmamba_mm.models import VisionMamba

CLASS_TOKENS = ('middle', 'head', 'double', 'none')
DIRECTIONS = ('raster', 'raster_reverse')


def backbone(depth=2, seed=0, eval_mode=True, **kwargs):
    kwargs.setdefault('arch', dict(embed_dims=16, num_layers=depth))
    kwargs.setdefault('img_size', 16)
    kwargs.setdefault('patch_size', 4)
    kwargs['mixer_cfg'] = dict(d_state=4, **kwargs.get('mixer_cfg', {}))
    if kwargs.get('class_token') == 'none':
        kwargs.setdefault('out_type', 'avg_featmap')
    torch.manual_seed(seed)
    net = VisionMamba(**kwargs)
    randomise(net, seed)
    return net.eval() if eval_mode else net


def classifier(arch, classes=1000, dims=192, **kwargs):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='transmamba.VisionMamba', arch=arch, **kwargs),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=dims),
    )


def tiny_student(depth=2, dims=12, expand=2, **kwargs):
    return classifier(
        dict(embed_dims=dims, num_layers=depth, expand=expand),
        TINY_CLASSES,
        dims,
        img_size=16,
        patch_size=4,
        mixer_cfg=dict(d_state=4),
        **kwargs,
    )
