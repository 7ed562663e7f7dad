# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Files: what may be read from them, and the tensors in their content."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from mmengine.runner import CheckpointLoader
from torch import Tensor

CONVERTER = 'tools/model_converters/official_to_transmamba.py'

_WRAPPERS = ('state_dict', 'model', 'module', 'model_state_dict')
_AVERAGED = 'model_ema'
_PARALLEL = 'module.'
#: Names that torch reserves for what it wraps modules in: compiled, sharded
#: and checkpointed ones.
_WRAPPED = re.compile(
    r'(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)


class CheckpointError(ValueError, RuntimeError):
    """A file that is no good, or weights that do not belong into a model.

    A ``RuntimeError``, too, because that is what a strict
    ``load_state_dict`` raises.
    """


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such file."""


@dataclass
class Source:
    """Where weights come from, as far as this is known.

    Attributes:
        content (Any): What the whole file holds.
        path (str, optional): Its path.
        family (str, optional): Family that the user named.
        hint (str): What to do if the family cannot be told.
    """

    content: Any = None
    path: Optional[str] = None
    family: Optional[str] = None
    hint: str = f'convert the file with {CONVERTER} --family NAME'

    def __str__(self) -> str:
        return f"'{self.path}'" if self.path else 'the checkpoint'


def read_checkpoint(path: str) -> dict:
    """Reads a checkpoint file without running code that it may hold.

    Args:
        path (str): What MMEngine's ``CheckpointLoader`` takes, to which
            :mod:`transmamba_mm.checkpoints.reader` belongs: local path, URL,
            name in a model zoo.

    Returns:
        dict: The content, its tensors on the CPU.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, no
            checkpoint, or more than data.
    """
    if not isinstance(path, str):
        raise CheckpointError(
            f'checkpoint must be a path or URL, got {path!r}'
        )
    return CheckpointLoader.load_checkpoint(path, map_location='cpu')


def unwrap_state_dict(
    content: Any, source: str = 'the checkpoint', ema: bool = False
) -> 'OrderedDict[str, Tensor]':
    """Finds the tensors in the content of a checkpoint, whoever wrote it.

    Accepts what :func:`~.weights.read_state_dict` does of a file, also
    several wrappers inside each other.

    Args:
        content (Any): What the file holds.
        source (str): Name of the file in error messages.
        ema (bool): Take the averaged weights under ``model_ema``. Defaults
            to False.

    Returns:
        OrderedDict[str, Tensor]: The tensors, with the ``_metadata`` that
        torch stores with a state dict.

    Raises:
        CheckpointError: If there are no tensors, or no averaged weights.
    """
    if ema:
        content = content if isinstance(content, Mapping) else {}
        if not isinstance(content.get(_AVERAGED), Mapping):
            raise CheckpointError(
                f"checkpoint '{source}' holds no averaged weights under "
                f"'{_AVERAGED}', only {', '.join(map(repr, content))}: leave "
                f'the choice of averaged weights out'
            )
        content = content[_AVERAGED]
    while True:
        inners = content if isinstance(content, Mapping) else {}
        inners = [inners.get(key) for key in _WRAPPERS]
        inners = [inner for inner in inners if isinstance(inner, Mapping)]
        if not inners:
            break
        content = inners[0]
    metadata = getattr(content, '_metadata', None)
    if not isinstance(content, Mapping):
        content = {}
    tensors = OrderedDict(
        (_WRAPPED.sub('', key), value)
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    )
    if not tensors:
        raise CheckpointError(
            f"checkpoint '{source}' holds no tensors at its top level or "
            f'under {", ".join(_WRAPPERS)}, only '
            f'{", ".join(map(repr, list(content)[:6])) or "nothing"}'
        )
    tensors._metadata = OrderedDict(
        (_WRAPPED.sub('', f'{name}.')[:-1], note)
        for name, note in (metadata or {}).items()
    )
    if all(key.startswith(_PARALLEL) for key in tensors):
        tensors = strip_prefix(tensors, _PARALLEL)
    return tensors


def strip_prefix(
    state_dict: Mapping[str, Tensor], prefix: str
) -> 'OrderedDict[str, Tensor]':
    """The part of a state dict below a prefix, with its metadata.

    Args:
        state_dict (Mapping[str, Tensor]): A state dict.
        prefix (str): A prefix that ends in a dot.

    Returns:
        OrderedDict[str, Tensor]: The entries that have the prefix, without
        it.
    """
    part = OrderedDict(
        (key[len(prefix) :], value)
        for key, value in state_dict.items()
        if key.startswith(prefix)
    )
    # The name of a module is its prefix without the dot.
    metadata = getattr(state_dict, '_metadata', None) or {}
    part._metadata = OrderedDict(
        (f'{name}.'[len(prefix) : -1], dict(note))
        for name, note in metadata.items()
        if f'{name}.'.startswith(prefix)
    )
    return part


def lookup(owner: Any, name: str) -> Any:
    """An entry of a mapping or an attribute; None if there is none."""
    if isinstance(owner, Mapping):
        return owner.get(name)
    return getattr(owner, name, None)
