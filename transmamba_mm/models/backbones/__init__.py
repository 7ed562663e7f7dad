# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .base import MambaBackbone, find_mamba_backbone
from .plain_mamba import PlainMamba
from .vision_mamba import VisionMamba, convert_vim_state_dict

__all__ = [
    'MambaBackbone',
    'PlainMamba',
    'VisionMamba',
    'convert_vim_state_dict',
    'find_mamba_backbone',
]
