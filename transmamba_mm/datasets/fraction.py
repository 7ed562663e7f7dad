# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Training on a share of a dataset, without copying images."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)
from mmengine.logging import print_log
from torch.utils.data import Dataset, Subset

from transmamba_mm.checks import check_int, check_number, is_int
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


class Share(Subset):
    """A share of a dataset that cannot be reduced itself, e.g. a wrapper.

    Args:
        dataset (Dataset): The whole.
        indices (Sequence[int]): What is kept of it.
    """

    @property
    def metainfo(self) -> dict:
        """dict: What MMEngine knows of the classes."""
        return getattr(self.dataset, 'metainfo', {})

    def full_init(self) -> None:
        """Does nothing: the whole has been read to draw from it."""

    def get_subset(self, indices: Sequence[int]) -> 'Share':
        """A share of the share, e.g. a fold."""
        return Share(self.dataset, [self.indices[i] for i in indices])

    def get_data_info(self, idx: int) -> dict:
        """Annotation of a sample."""
        return self.dataset.get_data_info(self.indices[idx])

    def get_cat_ids(self, idx: int) -> list[int]:
        """Classes of a sample."""
        return np.ravel(self.get_data_info(idx)['gt_label']).tolist()

    def get_gt_labels(self) -> np.ndarray:
        """Class of each sample (num_samples,)."""
        labels = (self.get_data_info(i)['gt_label'] for i in range(len(self)))
        return np.array(list(labels))


def _origin(dataset: Dataset, index: int) -> tuple[int, ...]:
    """Which sample this is: the same for all repetitions of it."""
    if isinstance(dataset, Share):
        return _origin(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part, inside = dataset._get_ori_dataset_idx(index)
        return part, *_origin(dataset.datasets[part], inside)
    if isinstance(dataset, (RepeatDataset, ClassBalancedDataset)):
        inside = dataset._get_ori_dataset_idx(index)
        return _origin(dataset.dataset, inside)
    return (index,)


def _labels(dataset: Dataset, indices: Sequence[int]) -> np.ndarray:
    """Classes of samples; where not each has one, all have the same."""
    alike = np.zeros(len(indices), int)
    # Of all MMEngine's datasets; others tell no labels.
    if not hasattr(dataset, 'get_data_info'):
        return alike
    labels = [dataset.get_data_info(i).get('gt_label') for i in indices]
    single = all(np.ndim(x) == 0 and is_int(x) for x in labels)
    return np.array(labels) if single else alike


def drawn(dataset: Dataset, fraction: float, seed: int) -> np.ndarray:
    """Which samples a seeded, class-balanced draw takes.

    Repetitions of a sample, by wrappers, are taken or left together. Where
    samples have no label, or several, the draw is plain.

    Args:
        dataset (Dataset): What has a length.
        fraction (float): Share to take, in (0, 1].
        seed (int): Seed of the draw.

    Returns:
        np.ndarray: Whether each sample is taken (num_samples,), bool.

    Raises:
        ValueError: If the dataset has no length.
    """
    try:
        total = len(dataset)
    except TypeError as error:
        raise ValueError(
            f'{type(dataset).__name__} has no length to take a fraction of'
        ) from error
    members: dict[tuple, list[int]] = {}
    for index in range(total):
        members.setdefault(_origin(dataset, index), []).append(index)
    groups = list(members.values())
    labels = _labels(dataset, [group[0] for group in groups])
    taken = np.zeros(total, bool)
    for group in stratified_indices(labels, fraction, seed):
        taken[groups[group]] = True
    return taken


@DATASETS.register_module(name='FractionDataset')
def fraction_dataset(
    dataset: dict,
    fraction: float = 1.0,
    seed: int = 0,
    rest: bool = False,
    pipeline: Optional[list] = None,
) -> Dataset:
    """Builds a dataset and keeps a seeded, class-balanced share of it.

    Used in configs as ``dict(type='transmamba.FractionDataset',
    dataset=dict(...), fraction=0.25)``. A dataset of MMEngine's is itself
    reduced in place; of any other, and of wrappers, the result is a
    :class:`Share`. See :func:`drawn` for what is kept.

    Args:
        dataset (dict): Config of a dataset that has a length.
        fraction (float): Share to keep, in (0, 1]. Defaults to 1.
        seed (int): Seed of the choice, independent of the run's. Defaults
            to 0.
        rest (bool): Keep all but this share instead, to validate on what
            another dataset with the same arguments does not train on.
            Defaults to False.
        pipeline (list, optional): Pipeline of ``dataset``, to be written
            here where others read it, e.g. mmpretrain's ``vis_cam.py`` that
            of a test set. Defaults to None, its own.

    Returns:
        Dataset: The reduced dataset.

    Raises:
        ValueError: If ``fraction`` is out of range, there is no rest, or the
            dataset has no length.
    """
    if not 0 < check_number('fraction', fraction) <= 1:
        raise ValueError(f'fraction must lie in (0, 1], got {fraction}')
    check_int('seed', seed, minimum=0)
    if pipeline is not None:
        dataset = dict(dataset, pipeline=pipeline)
    built = DATASETS.build(dataset)
    if fraction == 1 and not rest:
        return built
    taken = drawn(built, fraction, seed)
    if rest:
        taken = ~taken
        if not taken.any():
            raise ValueError(f'fraction={fraction:g} leaves no sample')
    indices = np.flatnonzero(taken).tolist()
    if isinstance(built, BaseDataset):
        built.get_subset_(indices)
    else:
        built = Share(built, indices)
    print_log(
        f'using {len(indices)} of {len(taken)} samples '
        f'({fraction=:g}, {seed=}, {rest=})',
        logger='current',
    )
    return built
