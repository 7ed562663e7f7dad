# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Read the annotation files of datasets as data.

Cures:      MMEngine unpickles an annotation file whose name ends in ``.pkl``
            and reads YAML with the loader that makes any object. Both run
            code that is in the file.
Versions:   mmengine <= 0.10.7, mmpretrain <= 1.2.0.
Delete:     when mmengine asks before it unpickles, and reads YAML safely.
"""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, Optional

import yaml
from mmengine.dataset import BaseDataset
from mmengine.fileio import PickleHandler, register_handler
from mmengine.fileio.handlers import yaml_handler

__all__ = ['TRUSTED', 'UntrustedFileError', 'read_annotations_as_data']

#: Environment variable: pickled annotation files that may be read, as a PATH.
TRUSTED = 'TRANSMAMBA_TRUSTED_PICKLES'

# What the dataset that is being read calls its files; None outside.
_names: ContextVar[Optional[set]] = ContextVar('names', default=None)


class UntrustedFileError(ValueError):
    """An annotation file that could run code."""


@register_handler(['pickle', 'pkl'])
class _Handler(PickleHandler):
    """Unpickles for a dataset only what is trusted by name."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        names = _names.get()
        trusted = os.environ.get(TRUSTED, '').split(os.pathsep)
        trusted = {osp.abspath(path) for path in trusted if path}
        if names is not None and not any(
            _is_content(path, file) for path in trusted & names
        ):
            raise UntrustedFileError(
                f'the annotations are a pickle, which can run any code: '
                f'store them as JSON, or, if you trust the file, name it '
                f'with {TRUSTED}=FILE'
            )
        return super().load_from_fileobj(file, **kwargs)


def _is_content(path: str, file: Any) -> bool:
    """Whether it is this file that is read, and not another one beside it."""
    if not osp.isfile(path):  # on a server
        return True
    start = file.tell()
    read, _ = file.read(), file.seek(start)
    return read == Path(path).read_bytes()


def read_annotations_as_data() -> str:
    """Make datasets refuse pickles that are not named as trusted.

    What is read outside of a dataset, such as predictions, is not touched.

    Returns:
        str: What was done.
    """
    from mmpretrain.datasets import MultiTaskDataset

    # Tuples, which MMEngine writes, are read; no objects, no calls.
    yaml_handler.Loader = getattr(yaml, 'CFullLoader', yaml.FullLoader)
    for owner, name in (
        (BaseDataset, 'full_init'),
        (MultiTaskDataset, 'load_data_list'),
    ):
        read = getattr(owner, name)
        if not hasattr(read, '__wrapped__'):
            setattr(owner, name, _guard(read))
    return 'read as data'


def _guard(read: Callable) -> Callable:
    @wraps(read)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        values = [*vars(self).values(), *args]
        names = {osp.abspath(v) for v in values if isinstance(v, str)}
        token = _names.set(names)
        try:
            return read(self, *args, **kwargs)
        except (
            UntrustedFileError,
            yaml.constructor.ConstructorError,
        ) as error:
            raise UntrustedFileError(
                f"'{getattr(self, 'ann_file', args)}': "
                f'{" ".join(str(error).split())}'
            ) from error
        finally:
            _names.reset(token)

    return guarded
