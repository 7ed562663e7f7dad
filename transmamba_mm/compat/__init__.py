# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Everything that exists only because another package is old.

One file per cured problem; the head of each file says what it cures, in
which versions, and when it can be deleted. :func:`apply` runs them all and
is called by ``transmamba_mm/__init__.py`` before anything else, because two
of the cures must be in place before ``mmrazor.models`` and
``mmpretrain.models`` are imported for the first time.
"""

from __future__ import annotations

import warnings

from .adafactor import spare_transformers  # first: it acts at once
from .checkpoint_hook import keep_to_own_checkpoints
from .checkpoints import allow_mmengine_checkpoints
from .cpu_training import CpuAmpOptimWrapper, prepare_cpu_launch
from .data_files import UntrustedFileError, read_annotations_as_data
from .default_hooks import drop_any_default_hook
from .environment import Problem, find_problems
from .mmcv_hue import fix_adjust_hue
from .mmcv_images import UnreadableImageError, name_unreadable_images
from .mmengine_json import write_standard_json
from .mmengine_subsets import copy_subsets_alone
from .mmpretrain_multimodal import guard_multimodal
from .mmpretrain_wrappers import rename_wrapped_models
from .mmrazor_kd import ensure_mmrazor
from .mmrazor_lazy import accept_classes

__all__ = [
    'CpuAmpOptimWrapper',
    'Problem',
    'UnreadableImageError',
    'UntrustedFileError',
    'accept_classes',
    'allow_mmengine_checkpoints',
    'apply',
    'copy_subsets_alone',
    'drop_any_default_hook',
    'ensure_mmrazor',
    'find_problems',
    'fix_adjust_hue',
    'guard_multimodal',
    'keep_to_own_checkpoints',
    'name_unreadable_images',
    'prepare_cpu_launch',
    'read_annotations_as_data',
    'rename_wrapped_models',
    'spare_transformers',
    'write_standard_json',
]

# In the order in which they must run.
_CURES = {
    'mmengine without transformers': spare_transformers,
    'mmpretrain multimodal guard': guard_multimodal,
    'mmrazor distillation half': ensure_mmrazor,
    'mmrazor classes in lazy configs': accept_classes,
    'mmengine checkpoints': allow_mmengine_checkpoints,
    'mmengine checkpoint hook': keep_to_own_checkpoints,
    'mmengine default hooks': drop_any_default_hook,
    'mmengine annotation files': read_annotations_as_data,
    'mmcv hue on numpy 2': fix_adjust_hue,
    'mmcv unreadable images': name_unreadable_images,
    'mmengine json': write_standard_json,
    'mmengine subsets': copy_subsets_alone,
    'mmpretrain wrapped models': rename_wrapped_models,
}

_status: dict[str, str] = {}


def apply() -> dict[str, str]:
    """Apply every cure once; later calls return the same answer.

    Returns:
        dict[str, str]: For each cure, one line saying what it found and did.

    Raises:
        ImportError: If a required package is missing or its version cannot
            work. The message holds one line per problem, with its fix.
    """
    if _status:
        return dict(_status)
    fatal = [str(p) for p in find_problems() if p.breaks_import]
    if fatal:
        # The failure that follows usually names something unrelated.
        warnings.warn(_explain(fatal), RuntimeWarning, stacklevel=2)
    done = {}
    for name, cure in _CURES.items():
        try:
            done[name] = cure()
        except (ImportError, AssertionError) as error:
            raise ImportError(_explain(fatal or [str(error)])) from error
    _status.update(done)
    return dict(_status)


def _explain(lines: list[str]) -> str:
    return '\n  - '.join(
        ['transmamba_mm does not run in this environment:', *lines]
    )
