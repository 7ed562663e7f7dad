# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Keep ``mmpretrain.models`` importable beside a recent transformers.

Cures:      with pycocotools and transformers >= 4.52 installed, importing
            ``mmpretrain.models`` fails, even for plain classification: its
            multimodal models import names that transformers has moved.
Versions:   mmpretrain <= 1.2.0 with transformers >= 4.52.
Delete:     when a mmpretrain release supports current transformers.

How: mmpretrain already replaces its multimodal models by placeholders when
their requirements are absent. This sets the flag that says so.
"""

from __future__ import annotations

import sys

from .environment import installed_version, version_tuple

__all__ = ['guard_multimodal']

_FIRST_BROKEN = (4, 52)


def guard_multimodal() -> str:
    """Switch mmpretrain's multimodal models off where they cannot work.

    Must run before ``mmpretrain.models`` is imported. Neither transformers
    nor, unless needed, mmpretrain is imported to find out.

    Returns:
        str: What was found and done.
    """
    transformers = installed_version('transformers')
    if transformers is None or installed_version('pycocotools') is None:
        return 'not needed (transformers or pycocotools not installed)'
    if version_tuple(transformers) < _FIRST_BROKEN:
        return f'not needed (transformers {transformers})'
    if 'mmpretrain.models' in sys.modules:
        return 'too late: mmpretrain.models was imported before'
    from mmpretrain.utils import dependency

    dependency.WITH_MULTIMODAL = False
    return (
        f'mmpretrain multimodal models are off (transformers {transformers})'
    )
