# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CLIP's vision tower under OpenAI's names (arXiv 2103.00020).

The tower normalises its tokens once before the first layer (``ln_pre``) and
its FFNs use QuickGELU; neither is a parameter that a student could take.
"""

from .base import TeacherFamily, register

CLIP_VISION = register(
    TeacherFamily(
        name='CLIP vision tower',
        layers='transformer.resblocks.{}',
        signature='attn.in_proj_weight',
        outer={
            'conv1': 'patch_embed',
            'positional_embedding': 'pos_embed',
            'class_embedding': 'cls_token',
            'ln_post': 'final_norm',
        },
        inner={
            'ln_1': 'mixer_norm',
            'attn.in_proj_weight': 'qkv.weight',
            'attn.in_proj_bias': 'qkv.bias',
            'attn.out_proj': 'mixer_out',
            'ln_2': 'ffn_norm',
            'mlp.c_fc': 'ffn_in',
            'mlp.c_proj': 'ffn_out',
        },
        # The projection to what it shares with the text tower.
        ignores=(r'ln_pre\..+', 'proj'),
        extra_tokens=('class_embedding',),
        logits=('',),
        mixer_norm='ln_1',
    )
)
