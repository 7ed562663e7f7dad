# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The Transformers that can teach, one file a family.

A file registers one :class:`TeacherFamily`; nothing else need know it.
"""

from .base import FAMILIES, Found, TeacherError, TeacherFamily, register
from .beit import MMPRETRAIN_BEIT, TIMM_BEIT
from .clip import CLIP_VISION
from .llama import LLAMA
from .mmpretrain_vit import MMPRETRAIN_VIT
from .recognise import find_transformer
from .swin import SWIN
from .timm_vit import TIMM_VIT

__all__ = [
    'CLIP_VISION',
    'FAMILIES',
    'LLAMA',
    'MMPRETRAIN_BEIT',
    'MMPRETRAIN_VIT',
    'SWIN',
    'TIMM_BEIT',
    'TIMM_VIT',
    'Found',
    'TeacherError',
    'TeacherFamily',
    'find_transformer',
    'register',
]
