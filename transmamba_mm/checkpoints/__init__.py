# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""All that is known about files of weights."""

from .config_text import read_config_text, write_config
from .declared import fit_names, pretrained_parts, read_declared
from .files import (
    CheckpointError,
    CheckpointNotFoundError,
    Source,
    read_checkpoint,
    strip_prefix,
    unwrap_state_dict,
)
from .formats import FORMATS, CheckpointFormat
from .layout import NOTE, Stored, check_layout, note_layout
from .runs import find_latest_checkpoint
from .tensor_file import write_weights
from .weights import LazyTensors, digest_of, read_state_dict

__all__ = [
    'FORMATS',
    'NOTE',
    'CheckpointError',
    'CheckpointFormat',
    'CheckpointNotFoundError',
    'LazyTensors',
    'Source',
    'Stored',
    'check_layout',
    'digest_of',
    'find_latest_checkpoint',
    'fit_names',
    'note_layout',
    'pretrained_parts',
    'read_checkpoint',
    'read_config_text',
    'read_declared',
    'read_state_dict',
    'strip_prefix',
    'unwrap_state_dict',
    'write_config',
    'write_weights',
]
