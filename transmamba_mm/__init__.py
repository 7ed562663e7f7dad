# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TransMamba for OpenMMLab: from a pretrained Transformer to a Mamba."""

from . import compat

compat.apply()

# Registers everything; the cures above must be in place by now.
from . import (  # noqa: E402
    apis,
    datasets,
    distill,
    engine,
    evaluation,
    models,
    transfer,
)
from .version import __version__  # noqa: E402

__all__ = [
    '__version__',
    'apis',
    'compat',
    'datasets',
    'distill',
    'engine',
    'evaluation',
    'models',
    'transfer',
]
