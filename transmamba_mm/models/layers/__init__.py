# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .bidirectional_mixer import BidirectionalMixer
from .cross_mamba import CrossMamba
from .cross_scan_mixer import CrossScanMixer
from .directional_mixer import DirectionalMixer
from .ffn import FFN, GatedFFN
from .mamba_mixer import MambaMixer, MixerState
from .norm import RMSNorm
from .patch_embed import ConvPatchEmbed, OverlapPatchEmbed, TubeletPatchEmbed
from .plain_mamba_mixer import PlainMambaMixer

__all__ = [
    'FFN',
    'BidirectionalMixer',
    'ConvPatchEmbed',
    'CrossMamba',
    'CrossScanMixer',
    'DirectionalMixer',
    'GatedFFN',
    'MambaMixer',
    'MixerState',
    'OverlapPatchEmbed',
    'PlainMambaMixer',
    'RMSNorm',
    'TubeletPatchEmbed',
]
