# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Stage one: weight subcloning from a Transformer into a Mamba."""

from .hook import SubcloneInitializer
from .plan import TransferEntry, TransferError, TransferPlan
from .subclone import Subcloner

__all__ = [
    'SubcloneInitializer',
    'Subcloner',
    'TransferEntry',
    'TransferError',
    'TransferPlan',
]
