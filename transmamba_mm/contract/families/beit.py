# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""BEiT (arXiv 2106.08254) and what derives from it in timm: EVA, DINOv3.

They are like the ViTs of their libraries, but for a scale in each layer that
is a bare parameter, biases of queries and values alone, and attention that
knows of positions. Files of those without the scale are not told from
relatives that normalise after attention, hence only live models are copied.
"""

from dataclasses import replace

from .base import register
from .mmpretrain_vit import MMPRETRAIN_VIT
from .timm_vit import TIMM_VIT

_SCALES = {'gamma_1': 'mixer_scale', 'gamma_2': 'ffn_scale'}
_BIASES = {'attn.q_bias': 'q_bias', 'attn.v_bias': 'v_bias'}
# Keys have none, but timm's buffer of zeros.
_IGNORED = (
    r'attn\.k_bias',
    r'(attn|rel_pos_bias)\.relative_position_bias_table',
    r'rope\..+',
)
_POSITIONS = ('biases or rotations by position',)

MMPRETRAIN_BEIT = register(
    replace(
        MMPRETRAIN_VIT,
        name='mmpretrain BEiT',
        inner={**MMPRETRAIN_VIT.inner, **_SCALES, **_BIASES},
        ignores=MMPRETRAIN_VIT.ignores + _IGNORED,
        requires=tuple(_SCALES),
        layer_classes=(
            'mmpretrain.models.backbones.beit.BEiTTransformerEncoderLayer',
        ),
        attention_extras=_POSITIONS,
    )
)

TIMM_BEIT = register(
    replace(
        TIMM_VIT,
        name='timm BEiT, EVA or DINOv3',
        inner={**TIMM_VIT.inner, **_SCALES, **_BIASES},
        ignores=TIMM_VIT.ignores + _IGNORED,
        requires=tuple(_SCALES),
        layer_classes=(
            'timm.models.beit.Block',
            'timm.models.eva.EvaBlock',
        ),
        mixer='attn',
        attention_extras=_POSITIONS,
    )
)

TIMM_RELPOS = register(
    replace(
        TIMM_VIT,
        name='timm ViT with relative positions',
        layer_classes=('timm.models.vision_transformer_relpos.RelPosBlock',),
        not_copied='relative positions have no place in a student',
        attention_extras=_POSITIONS,
    )
)
