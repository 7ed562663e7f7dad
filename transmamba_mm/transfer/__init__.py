# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Stage one: weight subcloning from a Transformer into a Mamba."""

from .families import TeacherFamily, TransferError, read_teacher
from .hook import SubcloneInitializer
from .plan import TransferEntry, TransferPlan
from .subclone import Subcloner

__all__ = [
    'SubcloneInitializer',
    'Subcloner',
    'TeacherFamily',
    'TransferEntry',
    'TransferError',
    'TransferPlan',
    'read_teacher',
]
