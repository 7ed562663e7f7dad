# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Reading state dicts from the checkpoint files of several code bases."""

import os.path as osp
from collections.abc import Mapping

from mmengine.runner import CheckpointLoader
from torch import Tensor

_WRAPPERS = ('state_dict', 'model', 'module')


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint, whoever wrote it.

    Accepts a bare state dict, or one under ``state_dict`` (mmengine),
    ``model`` (DeiT, PlainMamba, Vim) or ``module`` (DeepSpeed); a ``module.``
    prefix of data-parallel training is dropped. From torch 2.6 on, files are
    loaded with ``weights_only=True``.

    Args:
        path (str): Local path or URL.

    Returns:
        dict[str, Tensor]: Tensors on the CPU.

    Raises:
        FileNotFoundError: If a local path does not exist.
        ValueError: If the file holds no tensors.
    """
    if '://' not in path and not osp.isfile(path):
        raise FileNotFoundError(
            f"checkpoint '{path}' does not exist; give the path or URL of a "
            f'trained checkpoint'
        )
    content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    for key in _WRAPPERS:
        inner = content.get(key) if isinstance(content, Mapping) else None
        if isinstance(inner, Mapping):
            content = inner
            break
    if not isinstance(content, Mapping):
        content = {}
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(
            f"checkpoint '{path}' holds no tensors at its top level or under "
            f'{", ".join(_WRAPPERS)}'
        )
    if all(key.startswith('module.') for key in tensors):
        tensors = {key[len('module.') :]: v for key, v in tensors.items()}
    return tensors
