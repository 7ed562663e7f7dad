# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The training engine: hooks, optimizer groups, runner and strategy."""

from .captions import CaptionsSeenHook
from .checkpoint import SafeCheckpointHook
from .finite import FiniteHook, NonFiniteError
from .full_shard import FullyShardStrategy
from .hooks import BareFileHook, EpochSeedHook, seed_worker
from .optim_groups import MergedGroupsOptimWrapperConstructor
from .precheck import PreCheckError, PreCheckHook
from .staged_runner import StagedRunner
from .teacher_cache import TeacherCacheHook

__all__ = [
    'BareFileHook',
    'CaptionsSeenHook',
    'EpochSeedHook',
    'FiniteHook',
    'FullyShardStrategy',
    'MergedGroupsOptimWrapperConstructor',
    'NonFiniteError',
    'PreCheckError',
    'PreCheckHook',
    'SafeCheckpointHook',
    'StagedRunner',
    'TeacherCacheHook',
    'seed_worker',
]
