# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Frames of a video: chosen, transformed alike, packed."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmpretrain.structures import DataSample

from transmamba_mm.checks import (
    check_bool,
    check_int,
    check_number,
    check_positive,
    is_sequence,
)
from transmamba_mm.datasets.seeded_augment import seeded
from transmamba_mm.registry import TRANSFORMS

from .video_decoding import check_decoder, open_video, reading

_ROUNDING = 1e-3  # of times in seconds: Matroska counts milliseconds


def choose_frames(
    times: np.ndarray,
    duration: float,
    max_frames: int,
    fps: Optional[float] = 1.0,
    window: Optional[tuple[float, float]] = None,
    random_offset: bool = False,
) -> np.ndarray:
    """Chooses frames of a video by time.

    Args:
        times (np.ndarray): When each frame is shown, in seconds, ascending
            (num_frames,).
        duration (float): When the last one ends, in seconds.
        max_frames (int): The most frames to choose.
        fps (float, optional): Frames per second; if these are more than
            ``max_frames``, as many of them at equal distances, as CLIP4Clip
            does (``slice_framepos=2``). None for the middles of
            ``max_frames`` segments of equal length. Defaults to 1.
        window (tuple[float, float], optional): Seconds from where on and
            until where. Defaults to None, all.
        random_offset (bool): Whether to take a random frame of each segment
            instead of the first or the middle one. Defaults to False.

    Returns:
        np.ndarray: Ascending indices, each once, at least one.

    Raises:
        ValueError: If the video ends before the window begins.
    """
    start, stop = window or (0.0, duration)
    if start >= duration:
        raise ValueError(
            f'it ends after {duration:.2f} seconds, before the window {window}'
        )
    stop = min(stop, duration)
    count = max_frames
    if fps is not None:
        slots = max(1, int(np.ceil((stop - start) * fps - _ROUNDING)))
        count = min(slots, max_frames)
    if random_offset:
        places = (np.arange(count) + np.random.random(count)) / count
        wanted = start + (stop - start) * places
    elif fps is None:
        wanted = start + (stop - start) * (np.arange(count) + 0.5) / count
    else:
        kept = np.linspace(0, slots - 1, count).astype(int)
        wanted = start + kept / fps
    shown = np.searchsorted(times, wanted + _ROUNDING, side='right') - 1
    return np.unique(np.clip(shown, 0, len(times) - 1))


def _check_window(window: Sequence[float]) -> tuple[float, float]:
    if not is_sequence(window) or len(window) != 2:
        raise ValueError(f'window must be (start, stop), got {window!r}')
    start = check_number('start of window', window[0], minimum=0)
    stop = check_number('stop of window', window[1])
    if stop <= start:
        raise ValueError(f'window must end after it begins, got {window!r}')
    return start, stop


@TRANSFORMS.register_module()
class LoadVideo(BaseTransform):
    """Decodes frames of a video file, or of a folder of images.

    Reads ``video_path``; adds ``frames``, a list of RGB images (H, W, 3)
    uint8, and ``max_frames``.

    Args:
        max_frames (int): The most frames of a video. Defaults to 12.
        fps (float, optional): Frames per second, fewer if they are more than
            ``max_frames``; None for equal segments, see
            :func:`choose_frames`. Defaults to 1.
        window (tuple[float, float], optional): Seconds from where on and
            until where. Defaults to None, all.
        random_offset (bool): Whether to take a random frame of each segment,
            for training. Defaults to False.
        decoder (str): ``'pyav'``, ``'opencv'``, or ``'auto'``: PyAV if it is
            installed. Defaults to ``'auto'``.
        folder_fps (float): Images per second of a folder. Defaults to 1.

    Raises:
        ValueError: If a setting makes no sense, or PyAV is asked for and
            not installed.
        UnreadableVideoError: If a video is missing, cut off, without a video
            stream or otherwise not to be decoded, naming it and the cause.
    """

    def __init__(
        self,
        max_frames: int = 12,
        fps: Optional[float] = 1.0,
        window: Optional[tuple[float, float]] = None,
        random_offset: bool = False,
        decoder: str = 'auto',
        folder_fps: float = 1.0,
    ) -> None:
        self.max_frames = check_int('max_frames', max_frames)
        self.fps = None if fps is None else check_positive('fps', fps)
        self.random_offset = check_bool('random_offset', random_offset)
        self.folder_fps = check_positive('folder_fps', folder_fps)
        self.window = None if window is None else _check_window(window)
        self.decoder = check_decoder(decoder)

    def transform(self, results: dict) -> dict:
        """Decodes the frames of a sample."""
        path = results['video_path']
        with reading(path):
            video = open_video(path, self.decoder, self.folder_fps)
            video.check_whole(self.window[1] if self.window else np.inf)
            chosen = choose_frames(
                video.times,
                video.duration,
                self.max_frames,
                self.fps,
                self.window,
                self.random_offset,
            )
            results['frames'] = video.read(chosen)
        results['max_frames'] = self.max_frames
        return results

    def __repr__(self) -> str:
        settings = ', '.join(f'{k}={v}' for k, v in vars(self).items())
        return f'{type(self).__name__}({settings})'


@TRANSFORMS.register_module()
class EachFrame(BaseTransform):
    """Transforms the frames of a video as images, all in the same way.

    Whatever the transforms draw, by ``random``, NumPy or PyTorch, is the same
    for all frames: a random crop has one place, a flip is one of the clip.

    Args:
        transforms (list): Configs of transforms of ``img``, e.g. mmpretrain's
            ``ResizeEdge``, ``CenterCrop``, ``RandomResizedCrop``.
    """

    def __init__(self, transforms: list) -> None:
        self.transforms = Compose(transforms)

    def transform(self, results: dict) -> dict:
        """Transforms the frames of a sample."""
        seed = np.random.randint(2**31)
        frames = []
        for frame in results['frames']:
            with seeded(seed):
                image = self.transforms(
                    dict(img=frame, img_shape=frame.shape[:2])
                )
            frames.append(image['img'])
        results['frames'] = frames
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transforms})'


@TRANSFORMS.register_module()
class PackVideoText(BaseTransform):
    """Packs frames and tokens for a model.

    ``inputs`` is a uint8 tensor (3, T, H, W) with T of ``max_frames`` of
    :class:`LoadVideo`; frames that a video does not have are black, and
    ``num_frames`` of the data sample says from where on. The sample has
    ``tokens``, a LongTensor (num_captions, max_words), where there is
    text, and as meta data ``num_frames``, ``texts``, ``video_id`` and
    ``video_path``.

    Raises:
        ValueError: If the frames differ in size, naming the video.
    """

    def transform(self, results: dict) -> dict:
        """Packs a sample."""
        frames = results['frames']
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise ValueError(
                f"the frames of '{results['video_path']}' differ in size: "
                f'crop or resize them to one size with transmamba.EachFrame'
            )
        clip = np.zeros((results['max_frames'], *frames[0].shape), np.uint8)
        np.stack(frames, out=clip[: len(frames)])
        sample = DataSample(
            metainfo=dict(
                num_frames=len(frames),
                **{
                    key: results[key]
                    for key in ('texts', 'video_id', 'video_path')
                    if key in results
                },
            )
        )
        if 'tokens' in results:
            sample.tokens = results['tokens']
        inputs = torch.from_numpy(clip).permute(3, 0, 1, 2).contiguous()
        return dict(inputs=inputs, data_samples=sample)
