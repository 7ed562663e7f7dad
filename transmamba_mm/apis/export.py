# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From a distillation checkpoint to a plain mmpretrain student."""

import os
import os.path as osp
from typing import Optional

import torch
from mmengine.config import Config

from transmamba_mm.checkpoints import strip_prefix

_PREFIX = 'architecture.'
# Variables of our configs that describe the distillation, not the student.
_LEFTOVERS = ('student', 'teacher', 'distiller', 'custom_hooks')


def export_student(
    checkpoint: str, out_prefix: Optional[str] = None
) -> tuple[str, str]:
    """Extracts the student from a checkpoint of a distillation run.

    The result has no teacher, connectors or optimizer in it, and serves
    ``mmpretrain.get_model(config, pretrained=weights)`` and mmpretrain's own
    tools like any other classifier. If the run kept an EMA, the checkpoint's
    weights are the averaged ones already.

    Args:
        checkpoint (str): A ``.pth`` file of a distillation run.
        out_prefix (str, optional): The files ``<out_prefix>.py`` and
            ``<out_prefix>.pth`` are written. Defaults to the checkpoint's
            path without ``.pth``, with ``_student`` appended.

    Returns:
        tuple[str, str]: Paths of config and weights.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it is not a distillation checkpoint.
    """
    if not osp.isfile(checkpoint):
        raise FileNotFoundError(f"checkpoint '{checkpoint}' does not exist")
    content = torch.load(checkpoint, map_location='cpu', weights_only=True)
    state = content.get('state_dict', {})
    # With the metadata: it says which model the weights are of.
    student = strip_prefix(state, _PREFIX)
    meta = content.get('meta', {})
    if not student or 'cfg' not in meta:
        raise ValueError(
            f"'{checkpoint}' is no checkpoint of a distillation run: it "
            f"needs weights under '{_PREFIX}' and the config in its meta "
            f'data'
        )
    if out_prefix is None:
        out_prefix = osp.splitext(checkpoint)[0] + '_student'
    os.makedirs(osp.dirname(osp.abspath(out_prefix)), exist_ok=True)
    config, weights = f'{out_prefix}.py', f'{out_prefix}.pth'
    _student_config(meta['cfg']).dump(config)
    kept = {
        key: meta[key]
        for key in ('dataset_meta', 'mmengine_version', 'epoch', 'iter')
        if key in meta
    }
    torch.save(dict(meta=kept, state_dict=student), weights)
    return config, weights


def _student_config(text: str) -> Config:
    """The config of a distillation run, reduced to its student."""
    cfg = Config.fromstring(text, '.py')
    cfg.model = cfg.model.architecture
    for name in _LEFTOVERS:
        cfg.pop(name, None)
    cfg.load_from = None
    cfg.resume = False
    cfg.pop('work_dir', None)
    return cfg
