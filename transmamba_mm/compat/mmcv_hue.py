# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Make mmcv's hue jitter work on numpy 2.

Cures:      ``ColorJitter(hue=...)`` stops with "OverflowError: Python integer
            -11 out of bounds for uint8" as soon as a negative shift is drawn.
Versions:   mmcv <= 2.2.0 with numpy >= 2 (NEP 50).
Delete:     when mmcv computes the shift in a signed type.
"""

from __future__ import annotations

import functools

import numpy as np

from .environment import version_tuple

__all__ = ['fix_adjust_hue']


def fix_adjust_hue() -> str:
    """Wrap ``mmcv.adjust_hue`` so that a negative factor wraps around.

    Returns:
        str: What was done.
    """
    if version_tuple(np.__version__) < (2,):
        return 'not needed (numpy < 2)'
    import mmcv
    from mmcv.image import photometric

    original = photometric.adjust_hue
    if hasattr(original, '__wrapped__'):
        return 'negative hue shifts wrap around'

    @functools.wraps(original)
    def adjust_hue(img, hue_factor, backend=None):
        # mmcv multiplies the factor by the number of hue steps and converts
        # the product to uint8. A float type that keeps products positive
        # leaves the rest of the function, and its checks, alone.
        return original(img, _Wrapping(hue_factor), backend=backend)

    photometric.adjust_hue = adjust_hue
    mmcv.image.adjust_hue = adjust_hue
    mmcv.adjust_hue = adjust_hue
    return 'negative hue shifts wrap around'


class _Wrapping(float):
    """A factor whose products wrap around as unsigned bytes do."""

    def __mul__(self, steps):
        # int() first: numpy 1 truncated towards zero, then wrapped.
        return int(float(self) * steps) % 256
