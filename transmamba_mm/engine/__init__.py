# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hooks and the optimizer's groups: the training engine."""

from .captions import CaptionsSeenHook
from .checkpoint import SafeCheckpointHook
from .finite import FiniteHook, NonFiniteError
from .hooks import BareFileHook, EpochSeedHook, seed_worker
from .optim_groups import MergedGroupsOptimWrapperConstructor
from .precheck import PreCheckError, PreCheckHook
from .teacher_cache import TeacherCacheHook

__all__ = [
    'BareFileHook',
    'CaptionsSeenHook',
    'EpochSeedHook',
    'FiniteHook',
    'MergedGroupsOptimWrapperConstructor',
    'NonFiniteError',
    'PreCheckError',
    'PreCheckHook',
    'SafeCheckpointHook',
    'TeacherCacheHook',
    'seed_worker',
]
