# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Operators: the selective scan, its backends, and token orders."""

from .causal_conv import causal_conv1d_silu
from .dispatch import (
    BackendStatus,
    scan_backends,
    selected_backend,
    use_scan_backend,
)
from .linear import linear, with_fast_linears
from .rms_norm import rms_norm
from .selective_scan import multi_scan, selective_scan
from .state_step import selective_state_step
from .token_order import invert_order, reorder

__all__ = [
    'BackendStatus',
    'causal_conv1d_silu',
    'invert_order',
    'linear',
    'multi_scan',
    'reorder',
    'rms_norm',
    'scan_backends',
    'selected_backend',
    'selective_scan',
    'selective_state_step',
    'use_scan_backend',
    'with_fast_linears',
]
