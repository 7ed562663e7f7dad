# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Pairs of a teacher and a student, and what plain hooks see of them.

Nothing here asks the contract, but for scan orders: modules have their own
names, grids are square, and class tokens stand where these tables say.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from helpers import build, pmamba_cfg, vit_cfg
from mmengine.model import BaseModel
from mmpretrain.structures import DataSample
from teacher_cases import CASES, CLIPVision, swin
from torch import Tensor, nn

from transmamba_mm.contract import scan_order

CLASSES = 5


class Tower(BaseModel):
    """A teacher that is no classifier of mmpretrain's."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.tower(inputs)


@dataclass
class Parts:
    """Modules of one side, in depth order.

    Attributes:
        blocks (list): Layers.
        norms (list): Of each layer, the norm in front of its mixer.
        mixers (list): Of each layer, what adds to the stream.
        final (nn.Module): The norm after the last layer.
        head (nn.Module): What gives the logits.
        classes (tuple): Where class tokens stand among the tokens.
        turned (bool): Whether tokens are (L, B, C).
        qkv (callable): Weight and bias of a teacher's mixer that give
            queries, keys and values.
        inner (tuple): Parts of a student's mixer of which ``bc`` makes B and
            C of each direction.
        bc (callable): Gets the mixer and the outputs of these.
    """

    blocks: list
    norms: list
    mixers: list
    final: nn.Module
    head: nn.Module
    classes: tuple = ()
    turned: bool = False
    qkv: Optional[Callable] = None
    inner: tuple = ()
    bc: Optional[Callable] = None


def attention_qkv(mixer) -> tuple:
    return mixer.qkv.weight, mixer.qkv.bias


def vit_parts(model) -> Parts:
    net = model.backbone
    blocks = list(net.layers)
    norms, mixers = [x.ln1 for x in blocks], [x.attn for x in blocks]
    return Parts(
        *(blocks, norms, mixers, net.ln1, model.head, (0,)),
        qkv=attention_qkv,
    )


def timm_parts(model) -> Parts:
    net = model.model
    blocks = list(net.blocks)
    norms, mixers = [x.norm1 for x in blocks], [x.attn for x in blocks]
    return Parts(
        *(blocks, norms, mixers, net.norm, net, (0,)), qkv=attention_qkv
    )


def clip_parts(model) -> Parts:
    net = model.tower
    blocks = list(net.transformer.resblocks)
    norms, mixers = [x.ln_1 for x in blocks], [x.attn for x in blocks]
    return Parts(
        *(blocks, norms, mixers, net.ln_post, net, (0,), True),
        qkv=lambda mixer: (mixer.in_proj_weight, mixer.in_proj_bias),
    )


def swin_parts(model) -> Parts:
    net = model.backbone
    blocks = [block for stage in net.stages for block in stage.blocks]
    norms, mixers = [x.norm1 for x in blocks], [x.attn for x in blocks]
    return Parts(
        *(blocks, norms, mixers, net.norm3, model.head),
        qkv=lambda mixer: attention_qkv(mixer.w_msa),
    )


def last_two(rows: Tensor, size: int) -> tuple:
    """B and C of what a mixer computes of a token."""
    return rows[..., -2 * size : -size], rows[..., -size:]


def plain_mamba_bc(mixer, rows: Tensor) -> list:
    """Each direction adds to B what it knows of its last move."""
    B, C = last_two(rows, mixer.d_state)
    side = side_of(rows)
    row_of = {1: 1, -1: 2, -side: 3, side: 4}
    found = []
    for direction in mixer.directions:
        order = scan_order(direction, side, side).tolist()
        moves = [0, *(row_of[b - a] for a, b in zip(order, order[1:]))]
        found.append((B + mixer.direction_Bs[moves], C))
    return found


def vision_mamba_bc(mixer, *rows: Tensor) -> list:
    return [last_two(each, mixer.d_state) for each in rows]


def vmamba_bc(mixer, maps: Tensor) -> list:
    tokens = F.silu(maps).flatten(2).mT
    weights = mixer.x_proj_weight
    return [last_two(tokens @ each.T, mixer.d_state) for each in weights]


def plain_mamba_parts(model) -> Parts:
    net = model.backbone
    blocks = list(net.layers)
    norms, mixers = [x.norm for x in blocks], [x.mamba for x in blocks]
    return Parts(
        *(blocks, norms, mixers, net.ln1, model.head),
        inner=('x_proj',),
        bc=plain_mamba_bc,
    )


def vision_mamba_parts(model, classes=(8,)) -> Parts:
    net = model.backbone
    blocks = list(net.layers)
    norms, mixers = [x.norm for x in blocks], [x.mixer for x in blocks]
    # In the middle of 16 patches.
    return Parts(
        *(blocks, norms, mixers, net.norm_f, model.head, classes),
        inner=('x_proj', 'x_proj_b'),
        bc=vision_mamba_bc,
    )


def vmamba_parts(model) -> Parts:
    net = model.backbone
    blocks = [block for stage in net.layers for block in stage.blocks]
    norms, mixers = [x.norm for x in blocks], [x.op for x in blocks]
    return Parts(
        *(blocks, norms, mixers, net.norm, model.head),
        inner=('conv2d',),
        bc=vmamba_bc,
    )


def student_cfg(dims, **backbone) -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=dims),
    )


def vmamba(depths, dims=8) -> nn.Module:
    arch = dict(embed_dims=dims, depths=depths, mlp_ratio=2)
    dims <<= len(depths) - 1
    return build(student_cfg(dims, type='transmamba.VMamba', arch=arch), 1)


def vision_mamba(kind='VisionMamba', **kwargs) -> nn.Module:
    config = student_cfg(
        16,
        type=f'transmamba.{kind}',
        arch=dict(embed_dims=16, num_layers=2, ffn_ratio=2),
        img_size=16,
        patch_size=4,
        mixer_cfg=dict(d_state=4),
        **kwargs,
    )
    return build(config, 1)


def plain_mamba(dims=16) -> nn.Module:
    return build(pmamba_cfg(dims, classes=CLASSES), 1)


def vit() -> nn.Module:
    return build(vit_cfg(depth=3, classes=CLASSES))


@dataclass(frozen=True)
class PairCase:
    """A pair.

    Attributes:
        teacher (callable): Makes the teacher.
        teacher_parts (callable): Finds its parts.
        student (callable): Makes the student.
        student_parts (callable): Finds its parts.
        layers (dict): Teacher layer of each student layer, spread evenly.
        size (int): Side of the images.
        without (tuple): Methods that make no sense.
    """

    teacher: Callable
    teacher_parts: Callable
    student: Callable
    student_parts: Callable
    layers: dict
    size: int = 16
    without: tuple = ()


_TO_TWO = {0: 0, 1: 2}
_PLAIN = (plain_mamba, plain_mamba_parts, _TO_TWO)
PAIRS = {
    'ViT to PlainMamba': PairCase(vit, vit_parts, *_PLAIN),
    'ViT to narrow PlainMamba': PairCase(
        vit,
        vit_parts,
        lambda: plain_mamba(12),
        plain_mamba_parts,
        _TO_TWO,
    ),
    'ViT to VisionMamba': PairCase(
        vit, vit_parts, vision_mamba, vision_mamba_parts, _TO_TWO
    ),
    'ViT to VisionMamba with two class tokens': PairCase(
        vit,
        vit_parts,
        lambda: vision_mamba(class_token='double'),
        lambda model: vision_mamba_parts(model, (0, 17)),
        _TO_TWO,
    ),
    'ViT to VideoMamba': PairCase(
        vit,
        vit_parts,
        lambda: vision_mamba('VideoMamba'),
        lambda model: vision_mamba_parts(model, (0,)),
        _TO_TWO,
    ),
    'ViT to VMamba': PairCase(
        vit,
        vit_parts,
        lambda: vmamba((1, 1, 2), 4),
        vmamba_parts,
        {0: 0, 1: 1, 2: 1, 3: 2},
        without=('masked_relations',),
    ),
    'Swin to VMamba': PairCase(
        lambda: build(swin()),
        swin_parts,
        lambda: vmamba((1, 1, 2, 1)),
        vmamba_parts,
        {i: i for i in range(5)},
        size=64,
        # The one compares with a class token, the other needs one grid.
        without=('released', 'masked_relations'),
    ),
    'timm to PlainMamba': PairCase(
        CASES['TimmClassifier ViT'].make, timm_parts, *_PLAIN
    ),
    'CLIP to PlainMamba': PairCase(
        lambda: Tower(CLIPVision(batch_first=False)),
        clip_parts,
        *_PLAIN,
        # An embedding, no scores of classes.
        without=('kl', 'hard_label', 'standardised_kl', 'ofa'),
    ),
}


def batch_of(size: int, num: int = 4) -> tuple:
    """Images and their labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 3, size, size, generator=generator)
    samples = [DataSample().set_gt_label(i % CLASSES) for i in range(num)]
    return images, samples


# ------------------------------------------------------------- what is seen


@dataclass
class Seen:
    """What plain hooks saw of one side: tokens (B, L, C), layer by layer.

    ``bc`` holds a pair (B, C) for each layer and direction.
    """

    streams: list
    mixers: list
    layers: list
    tokens: Tensor
    logits: Tensor
    taps: dict
    bc: list


def watch(parts: Parts, run: Callable, taps: Optional[dict] = None) -> Seen:
    """Runs a model with plain hooks on its modules."""
    kept: dict[nn.Module, tuple] = {}

    def keep(module: nn.Module, inputs: tuple, output: Any) -> None:
        assert module not in kept
        kept[module] = (inputs, output)

    def turned(tokens: Any) -> Tensor:
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return tokens.transpose(0, 1) if parts.turned else tokens

    inner = [[getattr(x, key) for key in parts.inner] for x in parts.mixers]
    modules = [*parts.blocks, *parts.norms, *parts.mixers, parts.head]
    modules += [x for its in inner for x in its]
    modules += (taps or {}).values()
    handles = [x.register_forward_hook(keep) for x in dict.fromkeys(modules)]
    run()
    for handle in handles:
        handle.remove()
    layers = [turned(kept[x][1]) for x in parts.blocks]
    return Seen(
        [turned(kept[x][0][0]) for x in parts.norms],
        [turned(kept[x][1]) for x in parts.mixers],
        layers,
        parts.final(layers[-1]),
        kept[parts.head][1],
        {key: kept[x][1] for key, x in (taps or {}).items()},
        [
            parts.bc(mixer, *(kept[x][1] for x in its))
            for mixer, its in zip(parts.mixers, inner)
            if its
        ],
    )


def patches(tokens: Tensor, classes: tuple) -> Tensor:
    """Tokens without class tokens."""
    keep = [i for i in range(tokens.shape[1]) if i not in classes]
    return tokens[:, keep]


def side_of(tokens: Tensor) -> int:
    return math.isqrt(tokens.shape[1])


def on_grid(tokens: Tensor, side: int) -> Tensor:
    """Patches (B, L, C) in raster order on a square grid of another side."""
    maps = tokens.mT.unflatten(2, (side_of(tokens),) * 2)
    if maps.shape[-1] != side:
        maps = F.interpolate(maps, (side, side), mode='bilinear')
    return maps.flatten(2).mT
