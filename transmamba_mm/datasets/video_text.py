# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Videos with captions."""

import os.path as osp
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from transmamba_mm.checks import UnreadableFileError, check_bool
from transmamba_mm.registry import DATASETS

from .skipping import find_unreadable
from .transforms import LoadVideo, UnreadableVideoError
from .video_files import clip_settings, match_videos, read_captions

_CAPTIONS = ('random', 'each', 'all')
_SHOWN = 3


@DATASETS.register_module()
class VideoTextDataset(BaseDataset):
    """Videos with captions, for retrieval.

    A sample has ``video_path``, ``video_id`` (its name in the annotations)
    and ``texts``, a list of captions. Files are found by name, else by name
    without ending, see :func:`~transmamba_mm.datasets.video_files.
    match_videos`. ``metainfo['clips']`` says how
    ``tools/dataset_converters/extract_clips.py`` made the videos, if it did.

    Args:
        ann_file (str): JSON file of mmaction2's or VindLU's format, see
            :func:`~transmamba_mm.datasets.video_files.read_captions`.
        data_prefix (dict): ``dict(video=FOLDER)``. Defaults to
            ``dict(video='')``, ``data_root`` itself.
        captions (str, optional): ``'random'``: one sample per video with one
            of its captions, drawn anew each time; ``'each'``: one sample per
            video and caption; ``'all'``: one sample per video with all its
            captions. Defaults to None: ``'all'`` in test mode, otherwise
            ``'random'``.
        paragraph (bool): Whether a list of captions in the file is the
            sentences of one. Defaults to False.
        on_error (str): What becomes of videos that are missing or cannot be
            decoded. ``'error'``: they end the run. ``'skip'``: missing ones
            are left out; of those that cannot be decoded each is reported
            once and, in training, replaced by another video; in test mode
            all are decoded beforehand, so that it is known how many videos
            the result is for. Defaults to ``'error'``.
        **kwargs: Further arguments of MMEngine's ``BaseDataset``.

    Raises:
        ValueError: If an argument or the annotations make no sense.
    """

    def __init__(
        self,
        ann_file: str,
        data_prefix: Optional[dict] = None,
        captions: Optional[str] = None,
        paragraph: bool = False,
        on_error: str = 'error',
        test_mode: bool = False,
        **kwargs,
    ) -> None:
        if captions is None:
            captions = 'all' if test_mode else 'random'
        if captions not in _CAPTIONS:
            raise ValueError(
                f"captions must be 'random', 'each' or 'all', got {captions!r}"
            )
        if on_error not in ('error', 'skip'):
            raise ValueError(
                f"on_error must be 'error' or 'skip', got {on_error!r}"
            )
        self.captions = captions
        self.paragraph = check_bool('paragraph', paragraph)
        self.on_error = on_error
        self._unreadable = torch.zeros(0, dtype=torch.bool)
        super().__init__(
            ann_file=ann_file,
            data_prefix=dict(data_prefix or dict(video='')),
            test_mode=test_mode,
            **kwargs,
        )

    @property
    def num_skipped(self) -> int:
        """int: Samples found to be unreadable so far, by all workers."""
        return int(self._unreadable.sum())

    def full_init(self) -> None:
        """Reads the annotations; in test mode with ``'skip'`` the videos."""
        if self._fully_initialized:
            return
        super().full_init()
        if self.test_mode and self.on_error == 'skip':
            self._leave_out_unreadable()
        # Shared with the workers of the dataloader.
        self._unreadable = self._unreadable.new_zeros(
            len(self)
        ).share_memory_()

    def load_data_list(self) -> list[dict]:
        """Returns one dict per sample."""
        captions = read_captions(self.ann_file, self.paragraph)
        folder = self.data_prefix['video']
        paths = match_videos(captions, folder)
        self._metainfo['clips'] = clip_settings(folder)
        missing = [name for name, path in paths.items() if path is None]
        if missing and self.on_error == 'skip':
            _tell(f'missing in {folder}', missing, len(paths))
            captions = {x: y for x, y in captions.items() if paths[x]}
        return [
            dict(
                video_id=name,
                # Of a missing one: that the error names it.
                video_path=paths[name] or osp.join(folder, name),
                texts=texts,
            )
            for name, all_texts in captions.items()
            for texts in (
                [[text] for text in all_texts]
                if self.captions == 'each'
                else [all_texts]
            )
        ]

    def prepare_data(self, idx: int) -> Any:
        """A sample through the pipeline; None where another is to be taken.

        Raises:
            UnreadableVideoError: If its video cannot be decoded and is not
                to be skipped, or none can.
        """
        if self._unreadable[idx]:
            return None
        info = self.get_data_info(idx)
        if self.captions == 'random':
            texts = info['texts']
            info['texts'] = [texts[np.random.randint(len(texts))]]
        try:
            return self.pipeline(info)
        except UnreadableFileError as error:
            if self.on_error == 'error' or self.test_mode:
                raise
            self._unreadable[idx] = True
            if self._unreadable.all():
                raise UnreadableVideoError(
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
        loads = [
            transform
            for transform in self.pipeline.transforms
            if isinstance(transform, LoadVideo)
        ]
        paths = [self.get_data_info(i)['video_path'] for i in range(len(self))]
        bad = {}
        for load in loads:
            bad.update(find_unreadable(list(dict.fromkeys(paths)), load))
        if bad:
            told = [f'{path} ({reason})' for path, reason in bad.items()]
            _tell('not to be decoded', told, len(set(paths)))
            self.get_subset_([i for i, x in enumerate(paths) if x not in bad])


def _tell(what: str, names: Sequence[str], total: int) -> None:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    print_log(
        f'{len(names)} of {total} videos are {what} and skipped: '
        f'{", ".join(names[:_SHOWN])}{more}',
        logger='current',
        level=30,
    )
