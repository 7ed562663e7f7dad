# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What datasets say of themselves, and whether they say the same.

That is their classes, and of videos how they were made.
"""

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.dataset.dataset_wrapper import (
    ClassBalancedDataset,
    RepeatDataset,
)
from mmengine.fileio import get_file_backend
from mmpretrain.datasets import CustomDataset, KFoldDataset
from torch.utils.data import Subset

from .partly_labelled import PartlyLabelledDataset
from .seeded_augment import SeededAugment
from .video_text import VideoTextDataset

_WRAPPERS = (
    ClassBalancedDataset,
    KFoldDataset,
    PartlyLabelledDataset,
    RepeatDataset,
    SeededAugment,
    Subset,
)
_SHOWN = 5


def layers_of(dataset: Any) -> Iterator[Any]:
    """The dataset, and all those inside of it."""
    yield dataset
    inside: Sequence[Any] = ()
    if isinstance(dataset, ConcatDataset):
        inside = dataset.datasets
    elif isinstance(dataset, _WRAPPERS):
        inside = [dataset.dataset]
    for each in inside:
        yield from layers_of(each)


def parts_of(dataset: Any) -> Iterator[Any]:
    """The datasets inside any wrappers."""
    wrappers = (ConcatDataset, *_WRAPPERS)
    return (x for x in layers_of(dataset) if not isinstance(x, wrappers))


def labels_of(dataset: Any) -> set[int]:
    """All labels that samples have; none where this is not known."""
    found = set()
    for part in parts_of(dataset):
        if not isinstance(part, BaseDataset):
            continue
        for index in range(len(part)):
            label = part.get_data_info(index).get('gt_label', ())
            several = isinstance(label, Sequence) or getattr(label, 'ndim', 0)
            found.update(map(int, label if several else [label]))
    return found


def classes_of(dataset: Any) -> Optional[tuple[str, ...]]:
    """Names of the classes in order, as the dataset declares them."""
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    return tuple(classes) if classes else None


def _folders_of(part: Any) -> Optional[tuple[str, ...]]:
    """The folders that give the classes, where folders do."""
    if isinstance(part, CustomDataset) and not part.ann_file:
        return tuple(getattr(part, 'folder_to_idx', ())) or None
    return None


def describe_difference(
    wanted: Sequence[str], found: Sequence[str]
) -> Optional[str]:
    """How classes differ from those that they should be.

    Args:
        wanted (Sequence[str]): Names in order.
        found (Sequence[str]): Other names in order.

    Returns:
        str | None: What is missing, superfluous or in another place; None
        if all is the same.
    """
    if tuple(wanted) == tuple(found):
        return None
    kinds = {
        'missing': [name for name in wanted if name not in set(found)],
        'superfluous': [name for name in found if name not in set(wanted)],
    }
    told = [
        f'{kind}: {_some(names)}' for kind, names in kinds.items() if names
    ]
    if told:
        return '; '.join(told)
    place = next(i for i, (a, b) in enumerate(zip(wanted, found)) if a != b)
    return (
        f'in another order: class {place} is {found[place]!r} instead of '
        f'{wanted[place]!r}'
    )


def _some(names: Sequence[str]) -> str:
    more = '' if len(names) <= _SHOWN else f' and {len(names) - _SHOWN} more'
    return ', '.join(map(repr, names[:_SHOWN])) + more


def check_classes(datasets: Mapping[str, Any]) -> None:
    """Refuses datasets whose labels do not mean the same.

    Args:
        datasets (Mapping[str, Any]): By the name of what they are for, that
            for training first.

    Raises:
        ValueError: Naming the classes that are in one of them alone, hidden
            folders, and folders without an image.
    """
    parts = [
        (name, part)
        for name, dataset in datasets.items()
        for part in parts_of(dataset)
    ]
    for name, part in parts:
        _check_folders(name, part)
    for get in (_folders_of, classes_of):
        known = [(name, get(part)) for name, part in parts]
        known = [(name, classes) for name, classes in known if classes]
        for name, classes in known[1:]:
            first, wanted = known[0]
            difference = describe_difference(wanted, classes)
            if difference:
                raise ValueError(
                    f'the classes of {name} are not those of {first}, so '
                    f'labels would mean something else. {difference}'
                )


def check_videos(datasets: Mapping[str, Any]) -> None:
    """Refuses datasets that lack videos, or whose videos are made otherwise.

    Args:
        datasets (Mapping[str, Any]): By the name of what they are for, that
            for training first.

    Raises:
        ValueError: Naming them.
    """
    parts = [
        (name, part)
        for name, dataset in datasets.items()
        for part in parts_of(dataset)
        if isinstance(part, VideoTextDataset)
    ]
    for name, part in parts:
        infos = (part.get_data_info(i) for i in range(len(part)))
        paths = {info['video_path'] for info in infos}
        missing = sorted(path for path in paths if not osp.exists(path))
        if missing:
            raise ValueError(
                f'{name} lacks {len(missing)} of {len(paths)} videos: '
                f"{_some(missing)}. Fetch them, set on_error='skip' to do "
                f'without, or remove them from the annotations with '
                f'tools/dataset_converters/verify_videos.py --allow-missing'
            )
        check_clips(parts[0][1].metainfo, parts[0][0], part, name)


def check_clips(
    trained: Mapping[str, Any], first: str, part: Any, name: str
) -> None:
    """Refuses videos that were not made like those of the training.

    Args:
        trained (Mapping[str, Any]): Meta data of the training's dataset.
        first (str): What it is called.
        part (Any): Another dataset.
        name (str): What that is called.

    Raises:
        ValueError: Naming the settings that differ.
    """
    if 'clips' in trained and isinstance(part, VideoTextDataset):
        ours, other = trained['clips'], part.metainfo['clips']
        if ours != other:
            raise ValueError(
                f'the videos of {name} are not made like those of {first}, '
                f'which costs accuracy: {_made(other)} and {_made(ours)}. '
                f'Use tools/dataset_converters/extract_clips.py with the '
                f'same options for both, or for neither'
            )


def _made(clips: Optional[Mapping[str, Any]]) -> str:
    if clips is None:
        return 'as they came'
    return ' '.join(f'{key}={value}' for key, value in clips.items())


def check_trained(trained: Mapping[str, Any], dataset: Any) -> None:
    """Refuses class folders, or videos, unlike those a model was trained on.

    Args:
        trained (Mapping[str, Any]): Meta data of the training's dataset.
        dataset (Any): What it is tested on. Without class folders, or with
            other names for all of them, nothing is known.

    Raises:
        ValueError: Naming the difference.
    """
    classes = trained.get('classes') or ()
    for part in parts_of(dataset):
        check_clips(trained, 'the training', part, 'the test')
        folders = _folders_of(part) or ()
        difference = describe_difference(classes, folders)
        if difference and set(folders) & set(classes):
            raise ValueError(
                f'the class folders in {part.img_prefix} are not those of '
                f'the training, so labels would mean something else. '
                f'{difference}'
            )


def _has_images(part: CustomDataset, folder: str) -> bool:
    backend = get_file_backend(part.img_prefix)
    place = backend.join_path(part.img_prefix, folder)
    files = backend.list_dir_or_file(place, list_dir=False, recursive=True)
    return any(map(part.is_valid_file, files))


def _check_folders(name: str, part: Any) -> None:
    folders = _folders_of(part) or ()
    hidden = [folder for folder in folders if folder.startswith('.')]
    if hidden:
        raise ValueError(
            f'{name} takes {_some(hidden)} in {part.img_prefix} for a class: '
            f'remove it'
        )
    if not folders:
        return
    labels = labels_of(part)
    empty = [
        folder
        for label, folder in enumerate(folders)
        # A part of the data, such as a fold, may lack a class.
        if label not in labels and not _has_images(part, folder)
    ]
    if empty:
        raise ValueError(
            f'{name} has no image of {_some(empty)} in {part.img_prefix}: '
            f'add images or remove the folder, in all datasets alike'
        )
