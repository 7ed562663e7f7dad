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
            'fc_norm': 'pooled_norm',
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
        # Norms before the layers, and of queries and keys, the head of the
        # distillation token; the rest is of masked image modelling.
        ignores=(
            r'norm_pre\..+',
            r'attn\.[qk]_norm\..+',
            r'head_dist\..+',
            'mask_token|decoder_.+',
        ),
        layer_classes=('timm.models.vision_transformer.Block',),
        extra_tokens=('cls_token', 'dist_token', 'reg_token'),
        grid='patch_embed.grid_size',
        head=('^head', 'head'),
        before_head=('^neck', 'attn_pool', 'pre_logits'),
        logits=('^head', ''),
        # LayerScale, or an identity in its place.
        mixer='ls1',
    )
)
