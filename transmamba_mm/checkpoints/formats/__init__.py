# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the checkpoints of each model family are like, one file a family.

A file registers one :class:`CheckpointFormat`; nothing else need know it.
"""

from .base import FORMATS, CheckpointFormat, name_as_classifier, register
from .plain_mamba import PLAIN_MAMBA
from .video_mamba import VIDEO_MAMBA
from .vim import VIM
from .vmamba import VMAMBA

__all__ = [
    'FORMATS',
    'PLAIN_MAMBA',
    'VIDEO_MAMBA',
    'VIM',
    'VMAMBA',
    'CheckpointFormat',
    'name_as_classifier',
    'register',
]
