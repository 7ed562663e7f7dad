# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A dataset without some of its images."""

import os.path as osp

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from transmamba_mm.registry import DATASETS


@DATASETS.register_module(name='SkippingDataset')
def skipping_dataset(dataset: dict, listed: str) -> BaseDataset:
    """Builds a dataset and leaves out images that a file lists.

    Used in configs as ``dict(type='transmamba.SkippingDataset',
    dataset=dict(...), listed='unreadable.txt')``, with what
    ``tools/misc/verify_dataset.py --policy skip`` wrote. The result is the
    inner dataset itself, reduced in place.

    Args:
        dataset (dict): Config of a dataset whose samples have ``img_path``.
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
        if osp.abspath(built.get_data_info(index)['img_path']) not in skipped
    ]
    built.get_subset_(kept)
    print_log(
        f'{total - len(kept)} of {total} images are skipped ({listed})',
        logger='current',
    )
    return built
