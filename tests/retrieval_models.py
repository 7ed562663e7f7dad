# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tiny retrieval models and batches of videos that several tests share."""

import copy

import torch
from mmpretrain.structures import DataSample

from transmamba_mm.registry import MODELS

VOCAB, WORDS, FRAMES, WIDTH = 20, 6, 4, 8


def text_cfg(**kwargs) -> dict:
    """Config of a text tower of width 8, that of the common space."""
    settings = dict(
        type='transmamba.CLIPTextTower',
        arch=dict(embed_dims=8, num_layers=2, num_heads=2, out_channels=8),
        vocab_size=VOCAB,
        context_length=WORDS,
    )
    return {**settings, **kwargs}


def vision_cfg(patch_size: int = 8, **kwargs) -> dict:
    """Config of a vision tower of width 16 with 3 layers, images of 16."""
    settings = dict(
        type='transmamba.CLIPVisionTower',
        arch=dict(
            embed_dims=16,
            num_layers=3,
            num_heads=2,
            patch_size=patch_size,
            out_channels=8,
        ),
        img_size=16,
    )
    return {**settings, **kwargs}


def clip4clip_cfg(head: str = 'MeanPooling', patch_size: int = 8) -> dict:
    """Config of a teacher; its patches are 2x2 in each frame."""
    kwargs = {}
    if head == 'SequenceTransformer':
        kwargs = dict(num_layers=2, num_heads=2, max_frames=6)
    return dict(
        type='transmamba.VideoTextRetriever',
        backbone=dict(
            type='transmamba.PerFrame', model=vision_cfg(patch_size)
        ),
        text_encoder=text_cfg(),
        head=dict(type=f'transmamba.{head}', embed_dims=WIDTH, **kwargs),
    )


def mamba_cfg(dims: int = 16, head: str = 'MeanPooling', **backbone) -> dict:
    """Config of a student; its patches are 4x4 in each frame."""
    config = clip4clip_cfg(head)
    config['backbone'] = dict(
        type='transmamba.VideoMamba',
        arch=dict(embed_dims=dims, num_layers=2, ffn_ratio=2),
        img_size=16,
        patch_size=4,
        num_frames=FRAMES,
        mixer_cfg=dict(d_state=4),
        out_type='pooled',
        pool_type='cls+avg',
        keep_temporal=True,
    )
    config['backbone'].update(backbone)
    config['head']['video_channels'] = dims
    return config


def build_random(config: dict, seed: int = 0) -> torch.nn.Module:
    """Builds a model whose parameters are all far from their start values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS.build(copy.deepcopy(config))
        model.init_weights()
        for name, parameter in model.named_parameters():
            if parameter.dim() and 'A_log' not in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def video_batch(num: int = 4, texts: int = 1, seed: int = 0) -> tuple:
    """Normalised videos (num, 3, T, 16, 16), some padded, and their texts."""
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randn(num, 3, FRAMES, 16, 16, generator=generator)
    samples = []
    for i in range(num):
        tokens = torch.zeros(texts, WORDS, dtype=torch.long)
        for row in tokens:
            length = int(torch.randint(3, WORDS + 1, (), generator=generator))
            row[:length] = torch.randint(
                1, VOCAB - 2, (length,), generator=generator
            )
            row[0], row[length - 1] = VOCAB - 2, VOCAB - 1
        sample = DataSample(video_id=f'video{i}', num_frames=FRAMES - i % 2)
        sample.tokens = tokens
        samples.append(sample)
    return videos, samples
