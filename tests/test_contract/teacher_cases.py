# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A small model of each kind of teacher, with what it must be read as."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import timm
import torch
from helpers import build, vit_cfg
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CLIPLayer(nn.Module):
    """A layer of CLIP, under OpenAI's names."""

    def __init__(self, dims: int, batch_first: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dims, 2, batch_first=batch_first)
        self.ln_1 = nn.LayerNorm(dims)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(dims, 4 * dims),
                gelu=QuickGELU(),
                c_proj=nn.Linear(4 * dims, dims),
            )
        )
        self.ln_2 = nn.LayerNorm(dims)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class CLIPLayers(nn.Module):
    def __init__(self, dims: int, depth: int, batch_first: bool) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(
            *(CLIPLayer(dims, batch_first) for _ in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class CLIPVision(nn.Module):
    """CLIP's vision tower, under OpenAI's names."""

    def __init__(self, batch_first: bool, dims: int = 16) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.conv1 = nn.Conv2d(3, dims, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(dims))
        self.positional_embedding = nn.Parameter(torch.randn(17, dims))
        self.ln_pre = nn.LayerNorm(dims)
        self.transformer = CLIPLayers(dims, 3, batch_first)
        self.ln_post = nn.LayerNorm(dims)
        self.proj = nn.Parameter(torch.randn(dims, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).mT
        classes = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([classes, x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = self.transformer(x)
        if not self.batch_first:
            x = x.transpose(0, 1)
        return self.ln_post(x[:, 0]) @ self.proj


class CLIP(nn.Module):
    """Both towers; the layers of the text tower have the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = CLIPVision(batch_first=True)
        self.transformer = CLIPLayers(12, 2, True)

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


def swin() -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='SwinTransformer',
            arch=dict(
                embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4]
            ),
            img_size=64,
            patch_size=4,
            window_size=2,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
    )


def distilled() -> dict:
    config = vit_cfg(depth=3)
    config['backbone']['type'] = 'DistilledVisionTransformer'
    config['head']['type'] = 'DeiTClsHead'
    return config


def beit() -> dict:
    config = vit_cfg(depth=3, layer_scale_init_value=0.1, final_norm=True)
    config['backbone'].update(type='BEiTViT', out_type='cls_token')
    return config


def timm_model(name: str, **kwargs: Any) -> nn.Module:
    kwargs = dict(
        dict(
            img_size=16,
            patch_size=4,
            embed_dim=16,
            depth=3,
            num_heads=2,
            num_classes=5,
        ),
        **kwargs,
    )
    return timm.create_model(name, pretrained=False, **kwargs)


@dataclass(frozen=True)
class Case:
    """One teacher.

    Attributes:
        make (callable): Makes the model.
        family (str): Its family.
        prefix (str): Where the Transformer stands in the model.
        extra (int): Tokens that are no patches.
        positions (int): How many of them have a position.
        dims (tuple[int, ...]): Width of each layer.
        heads (tuple[int, ...]): Heads of each layer.
        size (int): Side of its images, pixels.
        layers (tuple[str, ...]): Names of its layers below ``where``.
        where (str): Name of the module that holds its layers.
        final (str): Name of its final norm.
        logits (bool): Whether it gives the scores of classes.
    """

    make: Any
    family: str
    prefix: str
    extra: int = 1
    positions: int = 1
    dims: tuple = (16, 16, 16)
    heads: tuple = (2, 2, 2)
    size: int = 16
    layers: tuple = ('0', '1', '2')
    where: str = 'layers'
    final: str = 'ln1'
    logits: bool = True


#: Stage and block of Swin's layers.
SWIN_BLOCKS = ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))

_TIMM = dict(family='timm VisionTransformer', where='blocks', final='norm')
_VIT = 'mmpretrain VisionTransformer'
_CLIP = dict(
    family='CLIP vision tower',
    where='transformer.resblocks',
    final='ln_post',
)


def _timm(name: str, **kwargs: Any) -> Any:
    return lambda: build(
        dict(
            type='mmpretrain.TimmClassifier',
            model_name=name,
            img_size=16,
            patch_size=4,
            embed_dim=16,
            depth=3,
            num_heads=2,
            num_classes=5,
            **kwargs,
        )
    )


CASES = {
    'mmpretrain ViT': Case(lambda: build(vit_cfg(depth=3)), _VIT, 'backbone.'),
    'mmpretrain DeiT distilled': Case(
        lambda: build(distilled()), _VIT, 'backbone.', extra=2, positions=2
    ),
    'TimmClassifier ViT': Case(
        _timm('vit_tiny_patch16_224'), prefix='model.', **_TIMM
    ),
    'TimmClassifier DeiT': Case(
        _timm('deit_tiny_patch16_224'), prefix='model.', **_TIMM
    ),
    'TimmClassifier DeiT distilled': Case(
        _timm('deit_tiny_distilled_patch16_224'),
        prefix='model.',
        extra=2,
        positions=2,
        **_TIMM,
    ),
    'TimmClassifier DeiT III': Case(
        _timm('deit3_small_patch16_224'),
        prefix='model.',
        positions=0,
        **_TIMM,
    ),
    'TimmClassifier DINOv2 with registers': Case(
        _timm('vit_small_patch14_reg4_dinov2'),
        prefix='model.',
        extra=5,
        positions=0,
        **_TIMM,
    ),
    'mmpretrain BEiT': Case(
        lambda: build(beit()), 'mmpretrain BEiT', 'backbone.', positions=0
    ),
    'TimmClassifier BEiT': Case(
        _timm('beit_base_patch16_224', global_pool='token'),
        prefix='model.',
        positions=0,
        **{**_TIMM, 'family': 'timm BEiT, EVA or DINOv3'},
    ),
    'TimmClassifier DINOv3': Case(
        _timm('vit_small_patch16_dinov3', qkv_bias=True),
        prefix='model.',
        extra=5,
        positions=0,
        **{**_TIMM, 'family': 'timm BEiT, EVA or DINOv3'},
    ),
    'bare timm': Case(
        lambda: timm_model('vit_tiny_patch16_224'), prefix='', **_TIMM
    ),
    'CLIP vision, batch first': Case(
        lambda: CLIPVision(True), prefix='', **_CLIP
    ),
    'CLIP vision, length first': Case(
        lambda: CLIPVision(False), prefix='', **_CLIP
    ),
    'CLIP, both towers': Case(CLIP, prefix='visual.', logits=False, **_CLIP),
    'Swin': Case(
        lambda: build(swin()),
        'mmpretrain SwinTransformer',
        'backbone.',
        extra=0,
        positions=0,
        dims=(8, 16, 32, 32, 64),
        heads=(1, 2, 2, 2, 4),
        size=64,
        layers=tuple(f'{i}.blocks.{j}' for i, j in SWIN_BLOCKS),
        where='stages',
        final='norm3',
    ),
}
