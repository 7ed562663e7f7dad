# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""mmpretrain's VisionTransformer and what derives from it: DeiT, MAE, MoCo v3.

``DistilledVisionTransformer`` has a second extra token; the pre-norm of
CLIP's towers in mmpretrain has no counterpart in a student.
"""

from dataclasses import replace

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
            'ln2': 'pooled_norm',
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
        # The second is of masked image modelling.
        ignores=(r'pre_norm\..+', 'mask_token'),
        layer_classes=(
            'mmpretrain.models.backbones.vision_transformer'
            '.TransformerEncoderLayer',
        ),
        extra_tokens=('cls_token', 'dist_token'),
        grid='patch_embed.init_out_size',
        head=('^head',),
        before_head=('^neck',),
        logits=('^head',),
        mixer_norm='ln1',
    )
)

MMPRETRAIN_DEIT3 = register(
    replace(
        MMPRETRAIN_VIT,
        name='mmpretrain DeiT3',
        layer_classes=(
            'mmpretrain.models.backbones.deit3.DeiT3TransformerEncoderLayer',
        ),
        not_copied=(
            'mmpretrain 1.2.0 runs its FFNs on ln1 in place of ln2, with '
            'which they were trained (a file is copied, or take that of timm)'
        ),
    )
)
