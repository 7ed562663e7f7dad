# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From a distillation checkpoint to a plain mmpretrain student."""

import os
import os.path as osp
from typing import Optional

from mmengine.config import Config

from transmamba_mm.checkpoints import (
    CheckpointError,
    read_checkpoint,
    read_config_text,
    strip_prefix,
    write_config,
    write_weights,
)

_PREFIX = 'architecture.'
# Variables of our configs that describe the distillation, not the student.
_LEFTOVERS = ('student', 'teacher', 'distiller', 'custom_hooks')


def export_student(
    checkpoint: str,
    out_prefix: Optional[str] = None,
    safetensors: bool = False,
) -> tuple[str, str]:
    """Extracts the student from a checkpoint of a distillation run.

    The result has no teacher, connectors or optimizer in it, and serves
    ``mmpretrain.get_model(config, pretrained=weights)`` and mmpretrain's own
    tools like any other classifier. If the run kept an EMA, the checkpoint's
    weights are the averaged ones already. The config is read as data and
    written as such; when it is used, it builds what the checkpoint's author
    wrote, so read it first if the checkpoint is not yours.

    Args:
        checkpoint (str): A ``.pth`` file of a distillation run.
        out_prefix (str, optional): The files ``<out_prefix>.py`` and
            ``<out_prefix>.pth`` are written. Defaults to the checkpoint's
            path without ``.pth``, with ``_student`` appended.
        safetensors (bool): Write ``<out_prefix>.safetensors`` instead of
            ``.pth``. Defaults to False.

    Returns:
        tuple[str, str]: Paths of config and weights.

    Raises:
        CheckpointError: If there is no such file, or it cannot be read, or
            is no distillation checkpoint.
    """
    content = read_checkpoint(checkpoint)
    state = content.get('state_dict', {})
    # With the metadata: it says which model the weights are of.
    student = strip_prefix(state, _PREFIX)
    meta = content.get('meta', {})
    if not student or 'cfg' not in meta:
        raise CheckpointError(
            f"'{checkpoint}' is no checkpoint of a distillation run: it "
            f"needs weights under '{_PREFIX}' and the config in its meta "
            f'data, which is plain data'
        )
    if out_prefix is None:
        out_prefix = osp.splitext(checkpoint)[0] + '_student'
    os.makedirs(osp.dirname(osp.abspath(out_prefix)), exist_ok=True)
    suffix = 'safetensors' if safetensors else 'pth'
    config, weights = f'{out_prefix}.py', f'{out_prefix}.{suffix}'
    write_config(_student_config(meta['cfg'], checkpoint), config)
    kept = {
        key: meta[key]
        for key in ('dataset_meta', 'mmengine_version', 'epoch', 'iter')
        if key in meta
    }
    write_weights(weights, student, kept)
    return config, weights


def _student_config(text: str, checkpoint: str) -> Config:
    """The config of a distillation run, reduced to its student."""
    try:
        cfg = Config(read_config_text(text))
        cfg.model = cfg.model.architecture
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the config in '{checkpoint}' has no model with an architecture"
        ) from error
    for name in _LEFTOVERS:
        cfg.pop(name, None)
    cfg.load_from = None
    cfg.resume = False
    cfg.pop('work_dir', None)
    return cfg
