# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Decodes what a config's datasets hold once, before a long training."""

import copy
from typing import Optional

from mmengine.config import Config
from mmengine.registry import init_default_scope

from transmamba_mm.datasets.inspect import parts_of
from transmamba_mm.datasets.skipping import (
    files_of,
    find_unreadable,
    loaders_of,
)
from transmamba_mm.registry import DATASETS


def find_unreadable_samples(
    cfg: Config, workers: Optional[int] = None
) -> tuple[dict[str, str], int]:
    """Decodes every image and video of a config's datasets.

    Args:
        cfg (Config): The config.
        workers (int, optional): Processes. Defaults to None, one per core.

    Returns:
        tuple[dict[str, str], int]: Paths of those that cannot be decoded,
        with the reason, and how many there are in all.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    seen: set[str] = set()
    bad: dict[str, str] = {}
    for kind in ('train', 'val', 'test'):
        loader = cfg.get(f'{kind}_dataloader') or {}
        if not loader.get('dataset'):
            continue
        for part in parts_of(DATASETS.build(copy.deepcopy(loader.dataset))):
            loads = loaders_of(part.pipeline)
            if not loads:
                continue  # its images are in memory
            infos = (part.get_data_info(i) for i in range(len(part)))
            paths = [path for info in infos for path in files_of(info)]
            paths = [x for x in dict.fromkeys(paths) if x not in seen]
            seen.update(paths)
            bad.update(find_unreadable(paths, loads[0], workers))
    return bad, len(seen)
