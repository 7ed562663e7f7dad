# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""mmpretrain's SwinTransformer (arXiv 2103.14030), of four stages.

Its layers have several widths, one for each stage. What merges patches
between the stages has no role: students merge theirs in another way.
"""

from .base import TeacherFamily, register

SWIN = register(
    TeacherFamily(
        name='mmpretrain SwinTransformer',
        layers='stages.{}.blocks.{}',
        signature='attn.w_msa.qkv.weight',
        outer={
            'patch_embed.projection': 'patch_embed',
            'patch_embed.norm': 'patch_norm',
            'absolute_pos_embed': 'pos_embed',
            'norm3': 'final_norm',
        },
        inner={
            'norm1': 'mixer_norm',
            'attn.w_msa.qkv': 'qkv',
            'attn.w_msa.proj': 'mixer_out',
            'norm2': 'ffn_norm',
            'ffn.layers.0.0': 'ffn_in',
            'ffn.layers.1': 'ffn_out',
        },
        # Merging of patches, norms of other outputs, biases of positions.
        ignores=(
            r'stages\.\d+\.downsample\..+',
            r'norm[0-2]\..+',
            r'attn\.w_msa\.relative_position_bias_table',
        ),
        layer_classes=(
            'mmpretrain.models.backbones.swin_transformer.SwinBlock',
        ),
        grid='patch_embed.init_out_size',
        head=('^head',),
        before_head=('^neck',),
        logits=('^head',),
        num_heads='attn.w_msa.num_heads',
    )
)
