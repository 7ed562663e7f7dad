# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The tensors of a checkpoint: of a file, or of a Hugging Face folder.

Those of a folder, which may hold several files, are read each time that they
are asked for, so that those of a large model need not be in memory together.
"""

import hashlib
import json
import os.path as osp
from collections.abc import Iterator, Mapping, MutableMapping
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from .files import (
    CheckpointError,
    CheckpointNotFoundError,
    read_checkpoint,
    unwrap_state_dict,
)

_WEIGHTS = 'model.safetensors'
_INDEX = f'{_WEIGHTS}.index.json'
#: Bytes of a tensor that is kept once it was read.
_SMALL = 1 << 16


class _Place(NamedTuple):
    """Where a tensor lies."""

    file: str
    name: str


class LazyTensors(MutableMapping[str, Tensor]):
    """Tensors of safetensors files by name, mapped anew at each access.

    A file's pages stay in memory for as long as a tensor of it does.

    Args:
        places (Mapping[str, _Place | Tensor]): Name to where it lies, or to
            the tensor itself.
        model_type (str): What ``config.json`` in the folder calls the model.
            Defaults to ``''``, unknown.
    """

    def __init__(
        self,
        places: Mapping[str, Union[_Place, Tensor]],
        model_type: str = '',
    ) -> None:
        self._places = dict(places)
        self.model_type = model_type

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        place = self._places[name]
        if isinstance(place, Tensor):
            return place
        with safe_open(place.file, 'pt') as file:
            tensor = file.get_tensor(place.name)
        if tensor.nbytes <= _SMALL:
            # A copy, which does not hold the file.
            tensor = self._places[name] = tensor.clone()
        return tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._places[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def renamed(self, names: Mapping[str, str]) -> 'LazyTensors':
        """Some of the tensors under other names.

        Args:
            names (Mapping[str, str]): New name to old name.

        Returns:
            LazyTensors: Those, still unread.
        """
        places = {new: self._places[old] for new, old in names.items()}
        return LazyTensors(places, self.model_type)


def read_folder(path: str) -> Optional[LazyTensors]:
    """The weights in a folder of Hugging Face, or of an index of shards.

    Args:
        path (str): A folder with ``model.safetensors`` or
            ``model.safetensors.index.json``, or the latter itself.

    Returns:
        LazyTensors | None: The tensors; None if the path is neither.

    Raises:
        CheckpointError: If there are no weights in the folder, or an index
            names a file or tensor that is not there.
    """
    path = osp.expanduser(path)
    folder = path
    if not osp.isdir(path):
        if not path.endswith('.index.json') or not osp.isfile(path):
            return None
        folder, index = osp.split(path)
    else:
        index = _INDEX if osp.isfile(osp.join(path, _INDEX)) else ''
    if not index:
        if not osp.isfile(osp.join(folder, _WEIGHTS)):
            raise CheckpointNotFoundError(
                f"checkpoint '{path}' is a folder without {_WEIGHTS} or "
                f'{_INDEX}: give a file, or a folder that Hugging Face has '
                f'saved as safetensors'
            )
        names = _names_in(osp.join(folder, _WEIGHTS))
        places = {n: _Place(osp.join(folder, _WEIGHTS), n) for n in names}
        return LazyTensors(places, _model_type(folder))
    where = osp.join(folder, index)
    places = {
        name: _Place(osp.join(folder, file), name)
        for name, file in _weight_map(where).items()
    }
    for file in sorted({place.file for place in places.values()}):
        held = _names_in(file)
        missing = [
            name
            for name, place in places.items()
            if place.file == file and name not in held
        ]
        if missing:
            raise CheckpointError(
                f"'{where}' expects {missing[0]} in '{file}', which lacks "
                f'it: download both again'
            )
    return LazyTensors(places, _model_type(folder))


def _model_type(folder: str) -> str:
    try:
        with open(osp.join(folder, 'config.json'), encoding='utf-8') as file:
            return str(json.load(file)['model_type'])
    except (OSError, ValueError, LookupError, TypeError):
        return ''


def _weight_map(path: str) -> dict[str, str]:
    """File of each tensor, by an index."""
    try:
        with open(path, encoding='utf-8') as file:
            found = json.load(file)['weight_map']
        # No file outside of the folder.
        if all(osp.basename(name) == name for name in found.values()):
            return dict(found)
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise CheckpointError(
        f"'{path}' is no index of shards: it has no weight_map from tensors "
        f'to files beside it'
    )


def _names_in(file: str) -> frozenset[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, 'pt') as opened:
            return frozenset(opened.keys())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"checkpoint '{file}', a shard of others, does not exist"
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"checkpoint '{file}' cannot be read: {error}"
        ) from error


def read_state_dict(
    path: str, ema: bool = False
) -> MutableMapping[str, Tensor]:
    """Reads the tensors of a checkpoint, whoever wrote it.

    Accepts a bare state dict, or one under ``state_dict`` (mmengine),
    ``model`` (DeiT, PlainMamba, Vim) or ``module`` (DeepSpeed); a ``module.``
    prefix of data-parallel training is dropped, and so are torch's own names
    of compiled and sharded modules. See :func:`read_checkpoint` for how the
    file is read. A folder that Hugging Face has saved, or its index of
    shards, is not read before its tensors are asked for.

    Args:
        path (str): Local path or URL.
        ema (bool): Take the averaged weights under ``model_ema``. Defaults
            to False.

    Returns:
        MutableMapping[str, Tensor]: Tensors on the CPU.

    Raises:
        CheckpointError: If the file cannot be read, or holds no tensors, or
            no averaged weights.
    """
    folder = read_folder(path) if isinstance(path, str) else None
    if folder is not None:
        return folder
    return unwrap_state_dict(read_checkpoint(path), path, ema)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """What tells weights from any others, names and kinds of number included.

    Args:
        tensors (Mapping[str, Tensor]): The weights, on any device.

    Returns:
        str: BLAKE2b in hexadecimal digits.
    """
    found = hashlib.blake2b()
    for name, value in tensors.items():
        data = value.cpu().flatten().contiguous().view(torch.uint8)
        found.update(f'{name} {value.dtype} {value.shape}'.encode())
        found.update(data.numpy())
    return found.hexdigest()
