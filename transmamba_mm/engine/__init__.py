# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hooks of the training engine."""

from .hooks import EpochSeedHook, SafeCheckpointHook, seed_worker

__all__ = ['EpochSeedHook', 'SafeCheckpointHook', 'seed_worker']
