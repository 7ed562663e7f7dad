# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tiny configurations of every registered backbone."""

import copy

import pytest
import torch
from helpers import randomise

from transmamba_mm.registry import MODELS

FRAMES = 4
DIMS = 16
_SMALL = dict(img_size=16, patch_size=4)
_VIM = dict(arch=dict(embed_dims=DIMS, num_layers=3), **_SMALL)
_STAGES = dict(embed_dims=8, depths=(1, 1, 2), mlp_ratio=2)

#: Arguments of small models, by registered name; several where the options
#: lead to other code.
TINY = {
    'PlainMamba': dict(
        released=dict(
            arch=dict(embed_dims=DIMS, num_layers=3, layers_with_dwconv=(1,)),
            **_SMALL,
        ),
        ffn=dict(
            arch=dict(embed_dims=DIMS, num_layers=3),
            stem='patch',
            ffn_ratio=2,
            mixer_cfg=dict(expand=1, layer_scale=0.5),
            **_SMALL,
        ),
    ),
    'VisionMamba': dict(
        middle=_VIM,
        double=dict(class_token='double', stride=2, **_VIM),
        ffn=dict(
            arch=dict(
                embed_dims=DIMS,
                num_layers=3,
                expand=1,
                ffn_ratio=2,
                norm_cfg=dict(type='LN', eps=1e-5),
            ),
            **_SMALL,
        ),
        v1=dict(
            class_token='none',
            out_type='avg_featmap',
            mixer_cfg=dict(bimamba_type='v1', layer_scale=0.5),
            **_VIM,
        ),
    ),
    'VideoMamba': dict(
        image=_VIM,
        video=dict(num_frames=FRAMES, **_VIM),
    ),
    'VMamba': dict(
        v2=dict(arch=_STAGES),
        gated=dict(arch=dict(_STAGES, ssm_ratio=2, d_state=4, gated=True)),
    ),
}
CASES = [
    pytest.param(name, kwargs, id=f'{name}-{variant}')
    for name, variants in TINY.items()
    for variant, kwargs in variants.items()
]
every_backbone = pytest.mark.parametrize(('name', 'kwargs'), CASES)


def build(name, kwargs, seed=0, **more):
    torch.manual_seed(seed)
    net = MODELS.get(name)(**{**copy.deepcopy(kwargs), **more})
    net.init_weights()
    randomise(net, seed)
    return net.eval()


def inputs(kwargs, height=16, width=16, batch=2, frames=None):
    size = (height, width)
    if 'num_frames' in kwargs:
        size = (frames or kwargs['num_frames'], *size)
    return torch.randn(batch, 3, *size)
