# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The tensors in a TorchScript archive, without running what it holds.

OpenAI released CLIP as such archives. ``torch.jit.load`` compiles their code
and runs what they define for loading. Here the attributes of the modules are
unpickled, their classes stand for nothing, and the code is not looked at.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Union

import torch
from torch import Tensor

#: How the message begins of what a checkpoint holds beyond data.
REFUSED = 'a checkpoint may not'

_DTYPES = {
    f'{name}Storage': dtype
    for name, dtype in dict(
        Double=torch.float64,
        Float=torch.float32,
        Half=torch.float16,
        BFloat16=torch.bfloat16,
        Long=torch.int64,
        Int=torch.int32,
        Short=torch.int16,
        Char=torch.int8,
        Byte=torch.uint8,
        Bool=torch.bool,
    ).items()
}


class _Scripted:
    """Stands for an object of any class of an archive."""


def _rebuilt(
    storage: Tensor, offset: int, size: Sequence, stride: Sequence, *_: Any
) -> Tensor:
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError(f'{REFUSED} repeat values in a tensor')
    return storage.as_strided(size, stride, offset)


def _as_it_is(value: Any, *_: Any) -> Any:
    return value


_KNOWN = {
    ('torch._utils', '_rebuild_tensor_v2'): _rebuilt,
    ('collections', 'OrderedDict'): OrderedDict,
    **{
        ('torch.jit._pickle', name): _as_it_is
        for name in (
            'build_boollist',
            'build_doublelist',
            'build_intlist',
            'build_tensorlist',
            'restore_type_tag',
        )
    },
}


class _Unpickler(pickle.Unpickler):
    """Makes tensors, numbers, strings and containers, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(_stored(archive, f'{folder}data.pkl')))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The few that are known, whatever the name says."""
        if module.split('.')[0] == '__torch__':
            return _Scripted
        if module == 'torch' and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f'{REFUSED} hold {module}.{name}')
        return _KNOWN[module, name]

    def persistent_load(self, pid: tuple) -> Tensor:
        """The values of a storage, as one row."""
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            content = _stored(self._archive, f'{self._folder}data/{key}')
            row = torch.empty(0, dtype=dtype)
            if content:
                row = torch.frombuffer(bytearray(content), dtype=dtype)
            self._storages[key] = row
        return self._storages[key]


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    part = archive.getinfo(name)
    if part.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(
            f'{REFUSED} have a compressed {name}: PyTorch stores it plainly'
        )
    return archive.read(part)


def _folder_of(archive: zipfile.ZipFile) -> str:
    """What the names of an archive's members start with, and a slash."""
    return archive.namelist()[0].partition('/')[0] + '/'


def is_torchscript(file: Union[str, io.BytesIO]) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        return bool(names) and f'{_folder_of(archive)}constants.pkl' in names


def read_torchscript(
    file: Union[str, io.BytesIO], device: Any
) -> 'OrderedDict[str, Tensor]':
    """Reads the parameters and buffers in a TorchScript archive.

    Args:
        file (str | io.BytesIO): The archive.
        device (Any): Where the tensors go.

    Returns:
        OrderedDict[str, Tensor]: What ``torch.jit.load(file).state_dict()``
        would give, but for parts that stand in a model twice, which are
        found by their first name alone.

    Raises:
        pickle.UnpicklingError: If the archive holds more than data.
    """
    with zipfile.ZipFile(file) as archive:
        whole = _Unpickler(archive, _folder_of(archive)).load()
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    todo, seen = [('', whole)], set()
    while todo:
        prefix, module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        parts = []
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value.to(device)
            elif isinstance(value, _Scripted):
                parts.append((f'{prefix}{name}.', value))
        todo += reversed(parts)
    return tensors
