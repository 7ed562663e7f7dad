# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Videos with captions."""

import os.path as osp
from typing import Optional

import numpy as np

from transmamba_mm.checks import check_bool
from transmamba_mm.registry import DATASETS

from .skipping import SkipsUnreadable, tell_skipped
from .video_files import clip_settings, match_videos, read_captions

_CAPTIONS = ('random', 'each', 'all')


@DATASETS.register_module()
class VideoTextDataset(SkipsUnreadable):
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
        self.captions = captions
        self.paragraph = check_bool('paragraph', paragraph)
        super().__init__(
            ann_file=ann_file,
            data_prefix=dict(data_prefix or dict(video='')),
            test_mode=test_mode,
            on_error=on_error,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Returns one dict per sample."""
        captions = read_captions(self.ann_file, self.paragraph)
        folder = self.data_prefix['video']
        paths = match_videos(captions, folder)
        self._metainfo['clips'] = clip_settings(folder)
        missing = [name for name, path in paths.items() if path is None]
        if missing and self.on_error == 'skip':
            what = f'videos are missing in {folder}'
            tell_skipped(missing, len(paths), what)
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

    def draw(self, idx: int) -> dict:
        """A sample, with one caption where they are drawn."""
        info = self.get_data_info(idx)
        if self.captions == 'random':
            texts = info['texts']
            info['texts'] = [texts[np.random.randint(len(texts))]]
        return info
