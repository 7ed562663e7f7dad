# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""All that is known about files of weights."""

from .files import (
    CheckpointError,
    Source,
    explain_unreadable,
    read_checkpoint,
    read_state_dict,
    strip_prefix,
    unwrap_state_dict,
)
from .formats import FORMATS, CheckpointFormat
from .layout import NOTE, Stored, check_layout, note_layout

__all__ = [
    'FORMATS',
    'NOTE',
    'CheckpointError',
    'CheckpointFormat',
    'Source',
    'Stored',
    'check_layout',
    'explain_unreadable',
    'note_layout',
    'read_checkpoint',
    'read_state_dict',
    'strip_prefix',
    'unwrap_state_dict',
]
