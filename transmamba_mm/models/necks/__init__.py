# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .clip_decoders import ClipDecoders

__all__ = ['ClipDecoders']
