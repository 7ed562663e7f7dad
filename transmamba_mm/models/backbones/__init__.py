# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .base import MambaBackbone, find_mamba_backbone
from .plain_mamba import PlainMamba

__all__ = ['MambaBackbone', 'PlainMamba', 'find_mamba_backbone']
