# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Stage two: distillation, by the paper's method and by others."""

from .algorithm import TransMambaDistill
from .calibration import FeatureCalibration
from .distiller import MethodDistiller
from .gradient_share import GradientShareHook
from .hooks import DistillMonitor, DistillScheduleHook
from .losses import DistillLoss, LayerMatchLoss, normalised_mse
from .methods import AdaptiveBidirectionalDistill, DistillMethod, Reading
from .patch_tokens import PatchTokensRecorder
from .projection import LayerProjection
from .recorders import (
    DirectionTapsRecorder,
    LayerwiseOutputsRecorder,
    StudentSiteRecorder,
    TeacherSiteRecorder,
)
from .schedule import Phase, Schedule, Span

__all__ = [
    'AdaptiveBidirectionalDistill',
    'DirectionTapsRecorder',
    'DistillLoss',
    'DistillMethod',
    'DistillMonitor',
    'DistillScheduleHook',
    'FeatureCalibration',
    'GradientShareHook',
    'LayerMatchLoss',
    'LayerProjection',
    'LayerwiseOutputsRecorder',
    'MethodDistiller',
    'PatchTokensRecorder',
    'Phase',
    'Reading',
    'Schedule',
    'Span',
    'StudentSiteRecorder',
    'TeacherSiteRecorder',
    'TransMambaDistill',
    'normalised_mse',
]
