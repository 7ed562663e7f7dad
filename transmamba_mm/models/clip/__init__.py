# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .layers import CLIPTransformer
from .tokenizer import CLIPTokenizer
from .towers import CLIPTextTower, CLIPVisionTower

__all__ = [
    'CLIPTextTower',
    'CLIPTokenizer',
    'CLIPTransformer',
    'CLIPVisionTower',
]
