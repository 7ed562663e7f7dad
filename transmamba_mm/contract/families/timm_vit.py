# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""timm's VisionTransformer: ViT, DeiT, DeiT III, DINOv2 with registers.

Bare, inside mmpretrain's ``TimmClassifier``, or as its ``TIMMBackbone``.
"""

from .base import TeacherFamily, register

TIMM_VIT = register(
    TeacherFamily(
        name='timm VisionTransformer',
        layers='blocks.{}',
        signature='attn.qkv.weight',
        outer={
            'patch_embed.proj': 'patch_embed',
            'pos_embed': 'pos_embed',
            'cls_token': 'cls_token',
            'norm': 'final_norm',
        },
        inner={
            'norm1': 'mixer_norm',
            'attn.qkv': 'qkv',
            'attn.proj': 'mixer_out',
            'ls1.gamma': 'mixer_scale',
            'norm2': 'ffn_norm',
            'mlp.fc1': 'ffn_in',
            'mlp.fc2': 'ffn_out',
            'ls2.gamma': 'ffn_scale',
        },
        extra_tokens=('cls_token', 'dist_token', 'reg_token'),
        head=('head', '^head.fc'),
        logits=('^head', ''),
        # LayerScale, or an identity in its place.
        mixer='ls1',
        # BEiT, EVA and DINOv3, whose layers have other parts.
        forbids=('gamma_1', 'attn.relative_position_bias_table'),
    )
)
