# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Images and videos that cannot be read: found, and left out."""

import os.path as osp
from collections.abc import Callable, Sequence
from typing import Optional

from joblib import Parallel, cpu_count, delayed
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from transmamba_mm.checks import UnreadableFileError
from transmamba_mm.registry import DATASETS

_CHUNK = 64


def file_of(info: dict) -> str:
    """Path of the video of a sample, or of its image."""
    return info['video_path'] if 'video_path' in info else info['img_path']


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
        if osp.abspath(file_of(built.get_data_info(index))) not in skipped
    ]
    built.get_subset_(kept)
    print_log(
        f'{total - len(kept)} of {total} samples are skipped ({listed})',
        logger='current',
    )
    return built
