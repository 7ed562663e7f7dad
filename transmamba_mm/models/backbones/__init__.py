# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .base import MambaBackbone
from .plain_mamba import PlainMamba
from .video_mamba import VideoMamba
from .vision_mamba import VisionMamba
from .vmamba import VMamba

__all__ = [
    'MambaBackbone',
    'PlainMamba',
    'VMamba',
    'VideoMamba',
    'VisionMamba',
]
