# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .backbones import (
    MambaBackbone,
    PlainMamba,
    VisionMamba,
    convert_vim_state_dict,
    find_mamba_backbone,
)

__all__ = [
    'MambaBackbone',
    'PlainMamba',
    'VisionMamba',
    'convert_vim_state_dict',
    'find_mamba_backbone',
]
