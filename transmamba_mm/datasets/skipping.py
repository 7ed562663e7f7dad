# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Images and videos that cannot be read: found, and left out."""

import os.path as osp
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from joblib import Parallel, cpu_count, delayed
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.dataset import BaseDataset, Compose
from mmengine.logging import print_log

from transmamba_mm.checks import UnreadableFileError
from transmamba_mm.registry import DATASETS

from .seeded_augment import random_states, restore_random
from .transforms import EachImage, LoadVideo

_CHUNK, _SHOWN = 64, 3


def files_of(info: dict) -> list[str]:
    """Paths of the images or the video of a sample."""
    if 'img_paths' in info:
        return list(info['img_paths'])
    return [info['video_path' if 'video_path' in info else 'img_path']]


def loaders_of(pipeline: Compose) -> list[BaseTransform]:
    """The transforms that load images or videos."""
    found: list[BaseTransform] = []
    for transform in pipeline.transforms:
        if isinstance(transform, EachImage):
            found += loaders_of(transform.transforms)
        elif isinstance(transform, (LoadImageFromFile, LoadVideo)):
            found.append(transform)
    return found


def find_unreadable(
    paths: Sequence[str],
    load: Callable[[dict], dict],
    workers: Optional[int] = None,
) -> dict[str, str]:
    """Decodes files once.

    Args:
        paths (Sequence[str]): The files.
        load (Callable): The transform that loads them.
        workers (int, optional): Processes. Defaults to None, one per core
            where there is work for several.

    Returns:
        dict[str, str]: Those that cannot be decoded, with the reason.
    """
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    found = Parallel(n_jobs=min(workers or cpu_count(), len(chunks)) or 1)(
        delayed(_unreadable)(chunk, load) for chunk in chunks
    )
    return {path: reason for each in found for path, reason in each}


def _unreadable(
    paths: Sequence[str], load: Callable[[dict], dict]
) -> list[tuple[str, str]]:
    found = []
    for path in paths:
        try:
            load(dict(img_path=path, video_path=path))
        except UnreadableFileError as error:
            found.append((path, str(error.__cause__)))
    return found


@DATASETS.register_module(name='SkippingDataset')
def skipping_dataset(dataset: dict, listed: str) -> BaseDataset:
    """Builds a dataset and leaves out images or videos that a file lists.

    Used in configs as ``dict(type='transmamba.SkippingDataset',
    dataset=dict(...), listed='unreadable.txt')``, with what
    ``tools/misc/verify_dataset.py --policy skip`` wrote. The result is the
    inner dataset itself, reduced in place.

    Args:
        dataset (dict): Config of a dataset whose samples have ``img_path``
            or ``video_path``.
        listed (str): A text file with one path per line.

    Returns:
        BaseDataset: The reduced dataset.
    """
    with open(listed) as file:
        skipped = {osp.abspath(line.rstrip('\n')) for line in file}
    built = DATASETS.build(dataset)
    total = len(built)
    kept = [
        index
        for index in range(total)
        if skipped.isdisjoint(
            map(osp.abspath, files_of(built.get_data_info(index)))
        )
    ]
    built.get_subset_(kept)
    print_log(
        f'{total - len(kept)} of {total} samples are skipped ({listed})',
        logger='current',
    )
    return built


def name_some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return f'{", ".join(names[:_SHOWN])}{more}'


def tell_skipped(names: Sequence[str], total: int, what: str) -> None:
    """Logs what is left out, and why.

    Args:
        names (Sequence[str]): What is left out.
        total (int): How many there are.
        what (str): What they are, e.g. ``'videos are missing'``.
    """
    print_log(
        f'{len(names)} of {total} {what} and skipped: {name_some(names)}',
        logger='current',
        level=30,
    )


class SkipsUnreadable(BaseDataset):
    """A dataset which says what becomes of files that cannot be decoded.

    Args:
        *args: Arguments of MMEngine's ``BaseDataset``.
        on_error (str): ``'error'``: they end the run. ``'skip'``: each is
            reported once and, in training, replaced by another sample; in
            test mode all are decoded beforehand, so that it is known how
            many samples the result is for. Defaults to ``'error'``.
        **kwargs: Further arguments of ``BaseDataset``.

    Raises:
        ValueError: If ``on_error`` is neither.
    """

    def __init__(
        self, *args: Any, on_error: str = 'error', **kwargs: Any
    ) -> None:
        if on_error not in ('error', 'skip'):
            raise ValueError(
                f"on_error must be 'error' or 'skip', got {on_error!r}"
            )
        self.on_error = on_error
        self._unreadable = torch.zeros(0, dtype=torch.bool)
        super().__init__(*args, **kwargs)

    @property
    def num_skipped(self) -> int:
        """int: Samples found to be unreadable so far, by all workers."""
        return int(self._unreadable.sum())

    def full_init(self) -> None:
        """Reads the annotations; in test mode with ``'skip'`` the files."""
        if self._fully_initialized:
            return
        super().full_init()
        if self.test_mode and self.on_error == 'skip':
            self._leave_out_unreadable()
        # Shared with the workers of the dataloader.
        self._unreadable = self._unreadable.new_zeros(
            len(self)
        ).share_memory_()

    def draw(self, idx: int) -> dict:
        """A sample, before the pipeline."""
        return self.get_data_info(idx)

    def prepare_data(self, idx: int) -> Any:
        """A sample through the pipeline; None where another is to be taken.

        Raises:
            UnreadableFileError: If its file cannot be decoded and is not to
                be skipped, or none can.
        """
        if self._unreadable[idx]:
            return None
        states = random_states()
        try:
            return self.pipeline(self.draw(idx))
        except UnreadableFileError as error:
            if self.on_error == 'error' or self.test_mode:
                raise
            # As if nothing had been drawn: a run that knows the file before,
            # such as a resumed one, goes on with the same numbers.
            restore_random(states)
            self._unreadable[idx] = True
            if self._unreadable.all():
                raise type(error)(
                    f'none of the {len(self)} samples can be read, at last: '
                    f'{error}'
                ) from error
            print_log(
                f'skipped, {self.num_skipped} of {len(self)} samples so far: '
                f'{error}',
                logger='current',
                level=30,
            )
        return None

    def _leave_out_unreadable(self) -> None:
        files = [files_of(self.get_data_info(i)) for i in range(len(self))]
        paths = list(dict.fromkeys(path for each in files for path in each))
        bad: dict[str, str] = {}
        for load in loaders_of(self.pipeline):
            bad.update(find_unreadable(paths, load))
        if bad:
            told = [f'{path} ({reason})' for path, reason in bad.items()]
            tell_skipped(told, len(paths), 'files are not to be decoded')
            good = [i for i, x in enumerate(files) if bad.keys().isdisjoint(x)]
            self.get_subset_(good)
