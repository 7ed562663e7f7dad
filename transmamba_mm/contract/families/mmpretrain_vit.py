# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""mmpretrain's VisionTransformer and what derives from it: DeiT, DeiT III.

``DistilledVisionTransformer`` has a second extra token; the pre-norm of
CLIP's towers in mmpretrain has no counterpart in a student.
"""

from .base import TeacherFamily, register

MMPRETRAIN_VIT = register(
    TeacherFamily(
        name='mmpretrain VisionTransformer',
        layers='layers.{}',
        signature='attn.qkv.weight',
        outer={
            'patch_embed.projection': 'patch_embed',
            'pos_embed': 'pos_embed',
            'cls_token': 'cls_token',
            'ln1': 'final_norm',
        },
        inner={
            'ln1': 'mixer_norm',
            'attn.qkv': 'qkv',
            'attn.proj': 'mixer_out',
            'attn.gamma1.weight': 'mixer_scale',
            'ln2': 'ffn_norm',
            'ffn.layers.0.0': 'ffn_in',
            'ffn.layers.1': 'ffn_out',
            'ffn.gamma2.weight': 'ffn_scale',
        },
        extra_tokens=('cls_token', 'dist_token'),
        head=('^head.layers.head', '^head.fc'),
        logits=('^head',),
        mixer_norm='ln1',
    )
)
