# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .generation import generate, stream
from .transmamba_lm import TransMambaLM

__all__ = ['TransMambaLM', 'generate', 'stream']
