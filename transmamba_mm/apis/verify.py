# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Decodes all images of a config's datasets once, before a long training."""

import copy
from collections.abc import Iterator
from typing import Any, Optional

from joblib import Parallel, cpu_count, delayed
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import init_default_scope

from transmamba_mm.compat import UnreadableImageError
from transmamba_mm.datasets.inspect import parts_of
from transmamba_mm.registry import DATASETS

_CHUNK = 256


def find_unreadable(
    cfg: Config, workers: Optional[int] = None
) -> tuple[dict[str, str], int]:
    """Decodes every image of a config's datasets.

    Args:
        cfg (Config): The config.
        workers (int, optional): Processes. Defaults to None, one per core.

    Returns:
        tuple[dict[str, str], int]: Paths of images that cannot be decoded,
        with the reason, and how many there are in all.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    jobs = list(_chunks(cfg))
    found = Parallel(n_jobs=workers or cpu_count())(
        delayed(_unreadable)(*job) for job in jobs
    )
    bad = {path: reason for each in found for path, reason in each}
    return bad, sum(len(paths) for paths, _ in jobs)


def _chunks(cfg: Config) -> Iterator[tuple[list[str], Any]]:
    """Paths, and the backend that reads them."""
    seen: set[str] = set()
    for kind in ('train', 'val', 'test'):
        loader = cfg.get(f'{kind}_dataloader') or {}
        if not loader.get('dataset'):
            continue
        for part in parts_of(DATASETS.build(copy.deepcopy(loader.dataset))):
            backends = [
                transform.backend_args
                for transform in part.pipeline.transforms
                if isinstance(transform, LoadImageFromFile)
            ]
            if not backends:
                continue  # its images are in memory
            infos = (part.get_data_info(i) for i in range(len(part)))
            paths = [info['img_path'] for info in infos]
            paths = [x for x in dict.fromkeys(paths) if x not in seen]
            seen.update(paths)
            for start in range(0, len(paths), _CHUNK):
                yield paths[start : start + _CHUNK], backends[0]


def _unreadable(paths: list[str], backend: Any) -> list[tuple[str, str]]:
    load, found = LoadImageFromFile(backend_args=backend), []
    for path in paths:
        try:
            load({'img_path': path})
        except UnreadableImageError as error:
            found.append((path, str(error.__cause__)))
    return found
