# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .bidirectional_mixer import BidirectionalMixer
from .directional_mixer import DirectionalMixer
from .linear import Linear
from .norm import RMSNorm
from .patch_embed import ConvPatchEmbed, OverlapPatchEmbed
from .plain_mamba_mixer import PlainMambaMixer
from .taps import DirectionTap, DirectionTaps

__all__ = [
    'BidirectionalMixer',
    'ConvPatchEmbed',
    'DirectionTap',
    'DirectionTaps',
    'DirectionalMixer',
    'Linear',
    'OverlapPatchEmbed',
    'PlainMambaMixer',
    'RMSNorm',
]
