# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .base import MambaBackbone, find_mamba_backbone
from .plain_mamba import PlainMamba
from .video_mamba import VideoMamba, convert_videomamba_state_dict
from .vision_mamba import VisionMamba, convert_vim_state_dict
from .vmamba import VMamba
from .vmamba_state_dict import convert_vmamba_state_dict

__all__ = [
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
