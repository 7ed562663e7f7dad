# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .backbones import MambaBackbone, PlainMamba, find_mamba_backbone

__all__ = ['MambaBackbone', 'PlainMamba', 'find_mamba_backbone']
