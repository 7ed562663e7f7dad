# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .backbones import (
    MambaBackbone,
    PlainMamba,
    VideoMamba,
    VisionMamba,
    VMamba,
)
from .clip import CLIPTextTower, CLIPTokenizer, CLIPVisionTower
from .language import TransMambaLM
from .necks import ClipDecoders
from .retrieval import MeanPooling, SequenceTransformer, VideoTextRetriever

__all__ = [
    'CLIPTextTower',
    'CLIPTokenizer',
    'CLIPVisionTower',
    'ClipDecoders',
    'MambaBackbone',
    'MeanPooling',
    'PlainMamba',
    'SequenceTransformer',
    'TransMambaLM',
    'VMamba',
    'VideoMamba',
    'VideoTextRetriever',
    'VisionMamba',
]
