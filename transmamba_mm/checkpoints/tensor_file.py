# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weights in a file: PyTorch's, or safetensors with what it leaves out."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Where a safetensors file keeps what torch stores with a state dict, and the
# meta data of a checkpoint, both as JSON.
_METADATA, _META = 'state_dict_metadata', 'meta'


def is_safetensors(path: str) -> bool:
    """Whether a file is one, by its first bytes.

    Args:
        path (str): Local path.

    Returns:
        bool: It begins with the length of a JSON header, and the header.
    """
    with open(path, 'rb') as file:
        return file.read(9)[8:] == b'{'


def read_safetensors(path: str, device: Any) -> dict[str, Any]:
    """Reads a safetensors file, whoever wrote it.

    Args:
        path (str): Local path.
        device (Any): Where the tensors go.

    Returns:
        dict[str, Any]: ``state_dict``, with its metadata if
        :func:`write_weights` has stored them, and ``meta``.
    """
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        tensors = OrderedDict(
            (key, file.get_tensor(key).to(device))
            for key in file.keys()  # noqa: SIM118 (it is no dict)
        )
        notes = file.metadata() or {}
    tensors._metadata = json.loads(notes.get(_METADATA, '{}'))
    return dict(state_dict=tensors, meta=json.loads(notes.get(_META, '{}')))


def write_weights(
    path: str, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Writes a checkpoint of weights in the format that its name asks for.

    Args:
        path (str): The file. One that ends in ``.safetensors`` keeps the
            metadata of the state dict as well, which say e.g. whether it is
            of a Vim or of a VideoMamba.
        state_dict (Mapping[str, Tensor]): The weights.
        meta (Mapping[str, Any]): Of plain values.
    """
    if not path.endswith('.safetensors'):
        torch.save(dict(meta=meta, state_dict=state_dict), path)
        return
    from safetensors.torch import save_file

    # Tensors that share memory are refused.
    tensors = {k: v.clone().contiguous() for k, v in state_dict.items()}
    notes = {
        'format': 'pt',
        _METADATA: json.dumps(getattr(state_dict, '_metadata', {})),
        _META: json.dumps(meta, default=str),
    }
    save_file(tensors, path, metadata=notes)
