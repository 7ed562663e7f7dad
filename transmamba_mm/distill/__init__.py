# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Stage two: adaptive bidirectional distillation."""

from .algorithm import TransMambaDistill
from .calibration import FeatureCalibration
from .losses import AdaptiveBidirectionalDistill
from .monitor import DistillMonitor
from .recorders import (
    DirectionTapsRecorder,
    LayerwiseOutputsRecorder,
    PatchTokensRecorder,
)
from .records import TapRecord

__all__ = [
    'AdaptiveBidirectionalDistill',
    'DirectionTapsRecorder',
    'DistillMonitor',
    'FeatureCalibration',
    'LayerwiseOutputsRecorder',
    'PatchTokensRecorder',
    'TapRecord',
    'TransMambaDistill',
]
