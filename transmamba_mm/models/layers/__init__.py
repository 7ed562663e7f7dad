# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .linear import Linear
from .norm import RMSNorm
from .patch_embed import ConvPatchEmbed
from .plain_mamba_mixer import PlainMambaMixer
from .taps import DirectionTap, DirectionTaps

__all__ = [
    'ConvPatchEmbed',
    'DirectionTap',
    'DirectionTaps',
    'Linear',
    'PlainMambaMixer',
    'RMSNorm',
]
