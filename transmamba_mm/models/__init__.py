# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .backbones import (
    MambaBackbone,
    PlainMamba,
    VideoMamba,
    VisionMamba,
    VMamba,
)
from .language import TransMambaLM
from .necks import ClipDecoders

__all__ = [
    'ClipDecoders',
    'MambaBackbone',
    'PlainMamba',
    'TransMambaLM',
    'VMamba',
    'VideoMamba',
    'VisionMamba',
]
