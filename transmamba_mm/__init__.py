# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TransMamba for OpenMMLab: from a pretrained Transformer to a Mamba."""

from . import compat

compat.apply()

# Registers everything; the cures above must be in place by now.
from . import apis, datasets, distill, engine, models, transfer  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    '__version__',
    'apis',
    'compat',
    'datasets',
    'distill',
    'engine',
    'models',
    'transfer',
]
