# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .backbones import (
    MambaBackbone,
    PlainMamba,
    VideoMamba,
    VisionMamba,
    VMamba,
    convert_videomamba_state_dict,
    convert_vim_state_dict,
    convert_vmamba_state_dict,
    find_mamba_backbone,
)
from .necks import ClipDecoders

__all__ = [
    'ClipDecoders',
    'MambaBackbone',
    'PlainMamba',
    'VMamba',
    'VideoMamba',
    'VisionMamba',
    'convert_videomamba_state_dict',
    'convert_vim_state_dict',
    'convert_vmamba_state_dict',
    'find_mamba_backbone',
]
