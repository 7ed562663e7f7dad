# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Small VMambas of every kind, and classifiers of any size."""

import pytest
import torch
from helpers import TINY_CLASSES, randomise

from transmamba_mm.models import VMamba

# Blocks in each stage of official models.
DEPTHS = {'tiny-s1l8': (2, 2, 8, 2), 'vanilla-tiny': (2, 2, 9, 2)}

# Small, with every kind of part.
VARIANTS = {
    'v2': {},
    'vanilla': dict(
        d_state=2,
        ssm_ratio=2.0,
        conv_bias=True,
        gated=True,
        mlp_ratio=0.0,
        patch_embed='v1',
        downsample='v1',
    ),
    'gated': dict(d_state=2, conv_bias=True, gated=True),
}
every_variant = pytest.mark.parametrize(
    'variant', VARIANTS.values(), ids=list(VARIANTS)
)


def small_arch(depths=(1, 2, 1), dims=8, **options):
    options = {'mlp_ratio': 2.0, **options}
    return dict(embed_dims=dims, depths=depths, **options)


def backbone(seed=0, eval_mode=True, variant=None, **kwargs):
    kwargs.setdefault('arch', small_arch(**(variant or {})))
    kwargs.setdefault('img_size', 32)
    torch.manual_seed(seed)
    net = VMamba(**kwargs)
    randomise(net, seed)
    return net.eval() if eval_mode else net


def classifier(arch, classes=1000, dims=768, **kwargs):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='transmamba.VMamba', arch=arch, **kwargs),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=dims),
    )


def tiny_student(**options):
    arch = small_arch(**{'depths': (1, 2), 'dims': 6, **options})
    return classifier(arch, TINY_CLASSES, 2 * arch['embed_dims'])
