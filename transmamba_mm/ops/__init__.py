# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Operators: the selective scan, its backends, and token orders."""

from .dispatch import (
    BackendStatus,
    scan_backends,
    selected_backend,
    use_scan_backend,
)
from .linear import linear
from .selective_scan import selective_scan
from .token_order import invert_order, reorder

__all__ = [
    'BackendStatus',
    'invert_order',
    'linear',
    'reorder',
    'scan_backends',
    'selected_backend',
    'selective_scan',
    'use_scan_backend',
]
