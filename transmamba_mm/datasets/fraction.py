# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Training on a share of a dataset, without copying images."""

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from transmamba_mm.checks import check_int, check_number
from transmamba_mm.registry import DATASETS


def stratified_indices(
    labels: np.ndarray, fraction: float, seed: int
) -> list[int]:
    """A random share of every class, at least one sample each.

    The draw for one fraction contains the draw for every smaller one with
    the same seed, so data-efficiency curves are nested.

    Args:
        labels (np.ndarray): Class of each sample (num_samples,).
        fraction (float): Share to keep, in (0, 1].
        seed (int): Seed of the draw.

    Returns:
        list[int]: Ascending indices.
    """
    rng = np.random.default_rng(seed)
    kept = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, int(fraction * len(members) + 0.5))
        kept.extend(members[:count].tolist())
    return sorted(kept)


@DATASETS.register_module(name='FractionDataset')
def fraction_dataset(
    dataset: dict, fraction: float = 1.0, seed: int = 0, rest: bool = False
) -> BaseDataset:
    """Builds a dataset and keeps a seeded, class-balanced share of it.

    Used in configs as ``dict(type='transmamba.FractionDataset',
    dataset=dict(...), fraction=0.25)``. The result is the inner dataset
    itself, reduced in place.

    Args:
        dataset (dict): Config of a dataset with ``get_gt_labels``, such as
            all of mmpretrain's.
        fraction (float): Share to keep, in (0, 1]. Defaults to 1.
        seed (int): Seed of the choice, independent of the run's. Defaults
            to 0.
        rest (bool): Keep all but this share instead, to validate on what
            another dataset with the same arguments does not train on.
            Defaults to False.

    Returns:
        BaseDataset: The reduced dataset.

    Raises:
        ValueError: If ``fraction`` is out of range, or there is no rest.
    """
    if not 0 < check_number('fraction', fraction) <= 1:
        raise ValueError(f'fraction must lie in (0, 1], got {fraction}')
    check_int('seed', seed, minimum=0)
    built = DATASETS.build(dataset)
    if fraction == 1 and not rest:
        return built
    total = len(built)
    labels = np.asarray(built.get_gt_labels())
    indices = stratified_indices(labels, fraction, seed)
    if rest:
        indices = np.setdiff1d(np.arange(total), indices).tolist()
        if not indices:
            raise ValueError(f'fraction={fraction:g} leaves no sample')
    built.get_subset_(indices)
    print_log(
        f'using {len(indices)} of {total} samples '
        f'({fraction=:g}, {seed=}, {rest=})',
        logger='current',
    )
    return built
