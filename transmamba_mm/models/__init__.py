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
from .multimodal import (
    ByteTokenizer,
    CausalTokenizer,
    ImageSetDataPreprocessor,
    MLPProjector,
    TransformersCausalLM,
    TransLlava,
)
from .necks import ClipDecoders
from .retrieval import MeanPooling, SequenceTransformer, VideoTextRetriever

__all__ = [
    'ByteTokenizer',
    'CLIPTextTower',
    'CLIPTokenizer',
    'CLIPVisionTower',
    'CausalTokenizer',
    'ClipDecoders',
    'ImageSetDataPreprocessor',
    'MLPProjector',
    'MambaBackbone',
    'MeanPooling',
    'PlainMamba',
    'SequenceTransformer',
    'TransLlava',
    'TransMambaLM',
    'TransformersCausalLM',
    'VMamba',
    'VideoMamba',
    'VideoTextRetriever',
    'VisionMamba',
]
