# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hooks of the training engine."""

from .hooks import (
    BareFileHook,
    EpochSeedHook,
    SafeCheckpointHook,
    seed_worker,
)

__all__ = [
    'BareFileHook',
    'EpochSeedHook',
    'SafeCheckpointHook',
    'seed_worker',
]
