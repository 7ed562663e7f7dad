# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hooks and the optimizer's groups: the training engine."""

from .hooks import (
    BareFileHook,
    EpochSeedHook,
    SafeCheckpointHook,
    seed_worker,
)
from .optim_groups import MergedGroupsOptimWrapperConstructor

__all__ = [
    'BareFileHook',
    'EpochSeedHook',
    'MergedGroupsOptimWrapperConstructor',
    'SafeCheckpointHook',
    'seed_worker',
]
