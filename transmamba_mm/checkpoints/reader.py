# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The one reader of all checkpoint files; nothing in a file is run.

:mod:`transmamba_mm.compat.checkpoints` gives it to MMEngine's
``CheckpointLoader`` for every scheme, so that ``load_from``, ``--resume``,
``init_cfg``, teachers and converters all come here.
"""

import errno
import hashlib
import io
import logging
import os
import os.path as osp
import pickle
import re
import urllib.error
import zipfile
from collections.abc import Iterator
from typing import Any, Optional, Union
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from mmengine.runner.checkpoint import (
    _get_mmengine_home,
    _process_mmcls_checkpoint,
)
from torch import Tensor

from .config_text import read_config_text
from .files import CheckpointError, CheckpointNotFoundError, unwrap_state_dict
from .layout import NOTE
from .runs import name_older
from .tensor_file import is_safetensors, read_safetensors
from .torchscript import REFUSED, is_torchscript, read_torchscript

# What MMEngine calls the model zoos that it knows.
_ZOOS = {
    'modelzoo': get_torchvision_models,
    'torchvision': get_torchvision_models,
    'open-mmlab': get_external_models,
    'openmmlab': get_external_models,
    'mmcls': get_mmcls_models,
}
_WEIGHTS = ('.weight', '.bias')
_File = Union[str, io.BytesIO]


def load_from_data_only(filename: str, map_location: Any = None) -> dict:
    """Reads a checkpoint of any of MMEngine's schemes as data.

    From torch 2.6 on, files are read with ``weights_only=True``; what
    MMEngine and the official code of the backbones store beside tensors is
    declared safe by :mod:`transmamba_mm.compat.checkpoints`. A config in the
    meta data that is more than data is left out, because MMEngine runs it.

    Args:
        filename (str): Local path, ``http(s)://`` or ``s3://`` URL, or name
            in a model zoo of MMEngine (``torchvision://resnet50``).
        map_location (Any): As for ``torch.load``. Defaults to None, the CPU.

    Returns:
        dict: The content.

    Raises:
        CheckpointError: In one line, if there is no such file, or it is
            damaged, no checkpoint, or more than data.
    """
    file = None
    try:
        file = _fetch(_resolve(filename))
        content = _read(file, map_location or 'cpu')
        if filename.startswith('mmcls://'):
            content = _process_mmcls_checkpoint(content)
        _check(content, filename)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a file can make a reader raise anything
        if isinstance(file, str) and file.startswith(_downloads()):
            os.unlink(file)  # the next attempt may get a better one
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(_explain(filename, file, error)) from error
    return content


# ------------------------------------------------------------ where it lies


def _resolve(path: str) -> str:
    """What a name in a model zoo stands for; any other path as it is."""
    scheme, _, name = path.partition('://')
    if scheme not in _ZOOS:
        return path
    known = _ZOOS[scheme]()
    name = get_deprecated_model_names().get(name, name)
    if name not in known:
        raise CheckpointNotFoundError(
            f"checkpoint '{path}' is none of the models of {scheme}"
        )
    url = known[name]
    return url if '://' in url else osp.join(_get_mmengine_home(), url)


def _fetch(path: str) -> _File:
    scheme, url, _ = path.partition('://')
    if not url:
        return _find_local(path)
    if scheme in ('http', 'https'):
        return _download(path)
    if scheme.rpartition(':')[2] in ('s3', 'petrel'):
        backend = get_file_backend(path, backend_args=dict(backend='petrel'))
        return io.BytesIO(backend.get(path))
    raise CheckpointNotFoundError(
        f"checkpoint '{path}' cannot be fetched: nothing here reads "
        f'{scheme}://'
    )


def _find_local(path: str) -> str:
    file = osp.expanduser(path)
    if osp.isfile(file):
        return file
    reason = 'does not exist'
    if osp.isdir(file):
        reason = 'is a folder'
    elif osp.exists(file):
        reason = 'is no regular file'
    elif osp.islink(file):
        reason = 'is a link to a file that does not exist'
    raise CheckpointNotFoundError(
        f"checkpoint '{path}' {reason}{name_older(file)}; give the path or "
        f'URL of a trained checkpoint'
    )


def _download(url: str) -> str:
    """Fetches a file once, each process for itself, as some read alone.

    What ``torch.hub`` has fetched before is taken. Our own are kept apart:
    it knows files by their names, and others read them less carefully.
    """
    name = osp.basename(urlsplit(url).path) or 'checkpoint'
    file = osp.join(torch.hub.get_dir(), 'checkpoints', name)
    if osp.isfile(file):
        return file
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    file = osp.join(_downloads(), digest, name)
    if not osp.isfile(file):
        os.makedirs(osp.dirname(file), exist_ok=True)
        print_log(f'Downloading {url} to {file}', logger='current')
        torch.hub.download_url_to_file(url, file, progress=False)
    return file


def _downloads() -> str:
    return osp.join(torch.hub.get_dir(), 'transmamba_mm')


# --------------------------------------------------------- what it contains


def _read(file: _File, map_location: Any) -> Any:
    if isinstance(file, str) and is_safetensors(file):
        return read_safetensors(file, map_location)
    if is_torchscript(file):
        return read_torchscript(file, map_location)
    _check_size(file)
    return torch.load(
        file,
        map_location=map_location,
        weights_only=torch.__version__ >= (2, 6),
    )


def _check_size(file: _File) -> None:
    """Refuses an archive that becomes larger when it is unpacked."""
    packed = file.getbuffer() if isinstance(file, io.BytesIO) else None
    size = osp.getsize(file) if packed is None else packed.nbytes
    if not zipfile.is_zipfile(file):
        return  # of an older torch, or none
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
    if unpacked > size:
        raise pickle.UnpicklingError(
            f'{REFUSED} become {unpacked:,} bytes of {size:,}: PyTorch does '
            f'not compress'
        )
    if packed is not None:
        file.seek(0)


def _explain(path: str, file: Optional[_File], error: Exception) -> str:
    """Says why a checkpoint could not be read, and what to do."""
    name, text = f"checkpoint '{path}'", str(error)
    found = re.search(rf'GLOBAL \S+|{REFUSED} .+', text)
    if found:
        return (
            f'{name} holds more than data, {found[0]}, and is not loaded: it '
            f'could run any code. If you trust it, store its tensors alone '
            f'in a new file'
        )
    if isinstance(error, urllib.error.URLError):
        return f'{name} cannot be downloaded: {text}'
    if isinstance(error, ImportError):
        return f'{name} cannot be read: {text}'
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f'{name} asks for more memory than there is'
    # Invalid is a seek before the start of a file that is cut short.
    damaged = isinstance(error, OSError) and error.errno == errno.EINVAL
    if isinstance(error, OSError) and error.strerror and not damaged:
        return f'{name} cannot be read: {error.strerror}'
    older = name_older(path) if '://' not in path else ''
    # PyTorch's own text proposes to run the code in the file.
    return (
        f'{name} cannot be read: it is damaged, or no checkpoint{older}. '
        f'Download or copy it again ({type(error).__name__}: {file})'
    )


def _check(content: Any, path: str) -> None:
    """Refuses what would break whoever uses the content; drops code."""
    problem = _find_problem(content) if isinstance(content, dict) else None
    if problem:
        raise CheckpointError(f"checkpoint '{path}' is refused: {problem}")
    unwrap_state_dict(content, path)
    _drop_code(content, path)


def _find_problem(content: dict) -> Optional[str]:
    for part in (content, *dict.values(content)):
        # What a file sets on an OrderedDict hides its methods.
        names = getattr(part, '__dict__', ())
        if isinstance(part, dict) and any(hasattr(dict, n) for n in names):
            return f'it sets attributes of a {type(part).__name__}'
    for name in ('state_dict', 'meta', 'message_hub'):
        if not isinstance(content.get(name, {}), dict):
            return f'its {name} is of type {type(content[name]).__name__}'
    for key, value in content.get('state_dict', {}).items():
        # A dict: one in another, as some authors have them.
        plain = isinstance(value, (Tensor, dict))
        if not plain and '_extra_state' not in str(key):
            return f'{key} is of type {type(value).__name__}, no tensor'
    if not all(map(_is_dense, _tensors(content))):
        return 'it holds a tensor that is not dense'
    for part in (content, *content.values()):
        problem = _find_in_weights(part) if isinstance(part, dict) else None
        if problem:
            return problem
    return _find_in_message_hub(content.get('message_hub', {}))


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in containers, which may hold themselves."""
    todo, seen = [content], set()
    while todo:
        part = todo.pop()
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, (dict, list, tuple)) and id(part) not in seen:
            seen.add(id(part))
            todo += dict.values(part) if isinstance(part, dict) else part


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (
        tensor.is_nested or tensor.is_meta or tensor.is_quantized
    )


def _find_in_weights(weights: dict) -> Optional[str]:
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            continue
        if not isinstance(key, str):
            return f'a tensor has the name {key!r}'
        if key.endswith(_WEIGHTS) and not value.is_floating_point():
            # PyTorch would convert quantised ones as if they were none.
            return f'{key} is of {value.dtype}, which is no weight'
    metadata = getattr(weights, '_metadata', None) or {}
    if not isinstance(metadata, dict) or not all(
        isinstance(name, str) and _is_note(note)
        for name, note in metadata.items()
    ):
        return 'the metadata of its tensors are malformed'
    return None


def _is_note(note: Any) -> bool:
    """Whether a module's metadata are such."""
    if not isinstance(note, dict):
        return False
    version, layout = note.get('version'), note.get(NOTE, {})
    grid = layout.get('grid', ()) if isinstance(layout, dict) else None
    return (
        isinstance(version, (int, type(None)))
        and isinstance(grid, (list, tuple))
        and all(type(side) is int and side > 0 for side in grid)
    )


def _find_in_message_hub(hub: dict) -> Optional[str]:
    for name in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub.get(name, {}), dict):
            return f'{name} in its message_hub is no dict'
    for name, value in hub.get('log_scalars', {}).items():
        # One that is not complete is of a class of its own.
        if issubclass(kind := type(value), HistoryBuffer) and (
            kind is not HistoryBuffer
        ):
            return f'the history of {name} is malformed'
    for name, value in hub.get('runtime_info', {}).items():
        number = isinstance(value, (int, float, np.number))
        if str(name).startswith('best_score') and not number:
            return f'{name} in its message_hub is no number'
    return None


def _drop_code(content: dict, path: str) -> None:
    """Removes, in place, configs that are more than data.

    MMEngine runs the text of ``meta['config']`` when it resumes, and that of
    the others in its inferencers.
    """
    meta = content.get('meta', {})
    meta.pop('config', None)  # only of MMEngine's predecessors
    info = content.get('message_hub', {}).get('runtime_info', {})
    for owner in (meta, info):
        try:
            read_config_text(owner.get('cfg', ''))
        except CheckpointError as error:
            del owner['cfg']
            print_log(
                f"checkpoint '{path}': {error}; it is left out",
                logger='current',
                level=logging.WARNING,
            )
