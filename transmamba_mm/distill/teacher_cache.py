# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What teachers gave for images, on disk.

One folder holds a store for each recorder: a row for every sample and view.
A row counts once it is marked, and is marked after it has reached the disk,
so that a process may be killed at any moment. Marks are checksums of the
images: another image is never mistaken for the one that the teacher saw.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from filelock import FileLock
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor

from transmamba_mm.contract import TokenRecord

Identity = Mapping[str, str]
Recorders = Mapping[str, BaseRecorder]
Samples = Sequence[BaseDataElement]


class TeacherCache:
    """Records of teachers by sample and view.

    Several processes may share the folder, at the same time too.

    Args:
        folder (str): Where it is.
        num_samples (int): Samples of the dataset.
        num_views (int): Augmentations of each.
        dtype (str, optional): ``'float16'`` stores floating numbers in half
            precision. Defaults to None: exactly as recorded.

    Raises:
        ValueError: If ``dtype`` is another one.
    """

    def __init__(
        self,
        folder: str,
        num_samples: int,
        num_views: int,
        dtype: Optional[str] = None,
    ) -> None:
        if dtype not in (None, 'float16'):
            raise ValueError(f"dtype must be None or 'float16', got {dtype!r}")
        self.folder = Path(folder)
        self.num_samples = num_samples
        self.num_views = num_views
        self.dtype = dtype
        self._stores: dict[str, _Store] = {}

    def __deepcopy__(self, memo: dict) -> 'TeacherCache':
        return self  # copies of a model share the files

    def lock(self) -> FileLock:
        """Keeps other processes from creating stores meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / 'lock')

    def open(self, identities: Mapping[str, Identity]) -> list[str]:
        """Opens the stores that exist.

        Args:
            identities (Mapping[str, Identity]): By name of the recorder,
                all that its records depend on.

        Returns:
            list[str]: Names of the others.

        Raises:
            ValueError: If a store is of something else.
        """
        for name, identity in identities.items():
            store = _Store(self.folder / name)
            if store.exists:
                store.open(self._complete(identity))
                self._stores[name] = store
        return [name for name in identities if name not in self._stores]

    def create(
        self, recorders: Recorders, identities: Mapping[str, Identity]
    ) -> None:
        """Makes stores for what recorders have recorded of one image.

        Raises:
            ValueError: If a record cannot be stored by image.
        """
        for name, recorder in recorders.items():
            store = _Store(self.folder / name)
            layout, tensors = _taken_apart(recorder.data_buffer, name)
            rows = self.num_samples * self.num_views
            identity = self._complete(identities[name])
            store.create(identity, rows, layout, tensors, self.dtype)
            self._stores[name] = store

    def check_room(self) -> None:
        """Says how large it is, or will be.

        Raises:
            ValueError: If the disk has no room for what is missing.
        """
        rows = self.num_samples * self.num_views
        width = sum(store.width for store in self._stores.values())
        wanted = sum(store.bytes_missing() for store in self._stores.values())
        free = shutil.disk_usage(self.folder).free
        text = (
            f'teacher cache {self.folder}: {width:,} bytes per image '
            f'({", ".join(self._stores)}), {self.num_samples:,} samples x '
            f'{self.num_views} views = {rows * width / 1e9:.3f} GB, of which '
            f'{wanted / 1e9:.3f} GB are still to be written; '
            f'{free / 1e9:.3f} GB are free'
        )
        if wanted > free:
            raise ValueError(
                f'{text}: choose another folder, fewer views, '
                f"dtype='float16', or methods that read less"
            )
        print_log(text, logger='current')

    def recall(
        self, recorders: Recorders, samples: Samples, device: torch.device
    ) -> bool:
        """Gives recorders what they recorded of these samples before.

        Args:
            recorders (Mapping[str, BaseRecorder]): By name.
            samples (Sequence[BaseDataElement]): What
                :class:`~transmamba_mm.datasets.SeededAugment` gave.
            device (torch.device): Where the records are wanted.

        Returns:
            bool: Whether all of them are known; if not, nothing is changed.

        Raises:
            ValueError: If an image is not the one that was cached.
        """
        rows, marks = self._rows(samples)
        stores = [self._stores[name] for name in recorders]
        # Of all stores, as each may be of other images.
        known = [store.knows(rows, marks) for store in stores]
        if not all(known):
            return False
        for recorder, store in zip(recorders.values(), stores):
            recorder.reset_data_buffer()
            recorder.data_buffer.extend(store.read(rows, device))
        return True

    def keep(self, recorders: Recorders, samples: Samples) -> None:
        """Writes what recorders have recorded of these samples.

        With a ``dtype`` they have the rounded records from now on, so that
        this pass over the data sees what later ones will.

        Raises:
            ValueError: If a number is too large for ``dtype``.
        """
        rows, marks = self._rows(samples)
        for name, recorder in recorders.items():
            layout, tensors = _taken_apart(recorder.data_buffer, name)
            kept = self._stores[name].write(rows, marks, tensors)
            if self.dtype is not None:
                recorder.reset_data_buffer()
                recorder.data_buffer.extend(_put_together(layout, kept))

    def flush(self) -> None:
        """Marks what has been written; it counts from then on."""
        for store in self._stores.values():
            store.flush()

    def _complete(self, identity: Identity) -> dict[str, str]:
        size = f'{self.num_samples} x {self.num_views}'
        own = {'samples and views': size, 'dtype': str(self.dtype)}
        return {**identity, **own}

    def _rows(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B,) of samples, and their marks (B,), which are not 0."""
        index, view, crc = np.array(
            [(x.sample_idx, x.augment_view, x.image_crc) for x in samples]
        ).T
        return view * self.num_samples + index, np.maximum(crc, 1)


class _Store:
    """The rows of one recorder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / 'index.json'
        self._file: Optional[int] = None
        self._unmarked: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def exists(self) -> bool:
        return self._index.exists()

    def create(
        self,
        identity: Identity,
        rows: int,
        layout: Any,
        tensors: Sequence[Tensor],
        dtype: Optional[str],
    ) -> None:
        parts = []
        for tensor in tensors:
            own = str(tensor.dtype).removeprefix('torch.')
            stored = dtype if dtype and tensor.is_floating_point() else own
            parts.append(
                dict(shape=tensor.shape[1:], dtype=own, stored=stored)
            )
        index = dict(identity=identity, rows=rows, layout=layout, parts=parts)
        self._folder.mkdir(exist_ok=True)
        width = sum(map(_size_of, parts))
        for name, size in (('records', width), ('marks', 4)):
            with open(self._folder / f'{name}.bin', 'wb') as file:
                file.truncate(rows * size)
        new = self._folder / 'index.json.new'
        new.write_text(json.dumps(index, indent=1))
        new.replace(self._index)  # from now on it exists
        self.open(identity)

    def open(self, identity: Identity) -> None:
        index = json.loads(self._index.read_text())
        found = index['identity']
        names = found.keys() | identity.keys()
        stale = sorted(x for x in names if found.get(x) != identity.get(x))
        if stale:
            raise ValueError(
                f'the teacher cache {self._folder} is stale: it was made '
                f'with another value of: {", ".join(stale)}. Choose another '
                f'folder, or delete this one'
            )
        self._layout, self._parts = index['layout'], index['parts']
        self.width = sum(map(_size_of, self._parts))
        self._data = np.memmap(
            self._folder / 'records.bin',
            np.uint8,
            'r',
            0,
            (index['rows'], self.width),
        )
        self._marks = np.memmap(self._folder / 'marks.bin', np.uint32, 'r')

    def bytes_missing(self) -> int:
        return self.width * int((self._marks == 0).sum())

    def knows(self, rows: np.ndarray, marks: np.ndarray) -> bool:
        found = self._marks[rows]
        wrong = (found != 0) & (found != marks)
        if wrong.any():
            raise ValueError(
                f'row {rows[wrong][0]} of the teacher cache {self._folder} is '
                f'of another image than the one that is now there: the data '
                f'have changed, or a transform draws from a random generator '
                f'of its own. Delete the cache, or train without'
            )
        return bool(found.all())

    def read(self, rows: np.ndarray, device: torch.device) -> list[Any]:
        tensors, start = [], 0
        for part in self._parts:
            stop = start + _size_of(part)
            flat = np.empty((len(rows), stop - start), np.uint8)
            for i, row in enumerate(rows):
                flat[i] = self._data[row, start:stop]
            stored = getattr(torch, part['stored'])
            tensor = _viewed(torch.from_numpy(flat), stored)
            tensor = tensor.view(len(rows), *part['shape']).to(device)
            tensors.append(tensor.to(getattr(torch, part['dtype'])))
            start = stop
        return _put_together(self._layout, tensors)

    def write(
        self, rows: np.ndarray, marks: np.ndarray, tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Writes tensors; returns them as they will be read."""
        flat, kept = [], []
        for part, tensor in zip(self._parts, tensors):
            if tensor.shape != (len(rows), *part['shape']):
                raise ValueError(
                    f'the teacher cache {self._folder} has tensors '
                    f'{part["shape"]} of each image, not '
                    f'{list(tensor.shape[1:])}: all images must have the '
                    f'same size'
                )
            stored = tensor.to(getattr(torch, part['stored']))
            kept.append(stored.to(tensor.dtype))
            narrower = part['stored'] != part['dtype']
            if narrower and (kept[-1].isinf() & tensor.isfinite()).any():
                raise ValueError(
                    f'the teacher cache {self._folder} has to hold '
                    f'{tensor.abs().max():g}, which {part["stored"]} cannot: '
                    f'leave out its dtype'
                )
            stored = _viewed(stored.flatten(1).contiguous(), torch.uint8)
            flat.append(stored.numpy(force=True))
        data = np.concatenate(flat, axis=1)
        if self._file is None:
            self._file = os.open(self._folder / 'records.bin', os.O_WRONLY)
        new = self._marks[rows] == 0
        for row, value in zip(rows[new], data[new]):
            # Not through the map, which would kill the process where the
            # disk is full.
            if self.width != os.pwrite(
                self._file, value, int(row) * self.width
            ):
                raise OSError(f'no room left for {self._folder}')
        self._unmarked.append((rows[new], marks[new]))
        return kept

    def flush(self) -> None:
        if not self._unmarked:
            return
        os.fsync(self._file)
        path = self._folder / 'marks.bin'
        writable = np.memmap(path, np.uint32, 'r+')
        for rows, marks in self._unmarked:
            writable[rows] = marks
        writable.flush()
        self._unmarked = []


def _viewed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bytes as another type; PyTorch refuses if there are none."""
    if tensor.numel():
        return tensor.view(dtype)
    return tensor.new_empty(tensor.shape, dtype=dtype)


def _size_of(part: Mapping[str, Any]) -> int:
    """Bytes of one image's share of a tensor."""
    count = int(np.prod(part['shape'], dtype=np.int64))
    return count * getattr(torch, part['stored']).itemsize


def _taken_apart(records: list, name: str) -> tuple[Any, list[Tensor]]:
    """Records as tensors, and the layout to put them together again."""
    tensors: list[Tensor] = []

    def add(tensor: Tensor) -> int:
        tensors.append(tensor.detach())
        return len(tensors) - 1

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            return add(value)
        if isinstance(value, TokenRecord):
            return dict(
                layer=value.layer,
                grid=value.grid,
                tokens=add(value.tokens),
                classes=add(value.classes),
            )
        if isinstance(value, (list, tuple)):
            return [visit(each) for each in value]
        raise ValueError(
            f'the teacher recorder {name} records a {type(value).__name__}, '
            f'which cannot be cached'
        )

    layout = visit(records)
    batches = {tuple(x.shape[:1]) for x in tensors}
    if len(batches) > 1 or () in batches:
        raise ValueError(
            f'the teacher recorder {name} records tensors '
            f'{[tuple(x.shape) for x in tensors]}, which are not all of one '
            f'batch: they cannot be cached by image'
        )
    return layout, tensors


def _put_together(layout: Any, tensors: Sequence[Tensor]) -> Any:
    """Undoes :func:`_taken_apart`; tuples have become lists."""
    if isinstance(layout, int):
        return tensors[layout]
    if isinstance(layout, list):
        return [_put_together(each, tensors) for each in layout]
    return TokenRecord(
        layout['layer'],
        tensors[layout['tokens']],
        tuple(layout['grid']),
        tensors[layout['classes']],
    )
