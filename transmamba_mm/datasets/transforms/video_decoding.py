# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Frames out of video files, by PyAV or OpenCV, or out of folders of images.

A video is opened twice. First its packets are read, not decoded, which tells
when each frame is shown; so frames are chosen by their times, and the frame
rate may vary. Then only what the chosen frames depend on is decoded, in one
pass, and only they are converted.
"""

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Optional

import cv2
import mmcv
import numpy as np
from PIL import Image

from transmamba_mm.checks import UnreadableFileError
from transmamba_mm.compat.environment import version_tuple

IMAGES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
_RATE = 25.0  # frames per second where a file does not say


class UnreadableVideoError(UnreadableFileError):
    """A video of which the frames asked for cannot be decoded."""


class Video(ABC):
    """A video whose frames can be read.

    Attributes:
        times (np.ndarray): When each frame is shown, in seconds, ascending
            from 0 on (num_frames,).
        rate (float): Frames per second, as the file says.
        declared (float): How long the file says that it is, in seconds; 0
            if it does not.
        partial (bool): Whether the file ends within a frame.
    """

    times: np.ndarray
    rate: float
    declared: float = 0.0
    partial: bool = False

    @property
    def duration(self) -> float:
        """float: Seconds until the end of the last frame, as far as known."""
        last, gaps = float(self.times[-1]), len(self.times) - 1
        return last + (last / gaps if gaps else 1 / self.rate)

    def check_whole(self, until: float = np.inf) -> None:
        """Refuses a file of which a part is missing.

        Args:
            until (float): Seconds from its start that matter. Defaults to
                all.

        Raises:
            ValueError: If it is cut off before.
        """
        # Containers round, and may count a frame that is not shown.
        frame = self.duration / len(self.times)
        whole = self.declared - min(0.05 * self.declared, 1) - 2 * frame
        if self.duration < min(np.inf if self.partial else whole, until):
            told = f'it is cut off after {self.duration:.2f} seconds'
            if self.declared > self.duration:
                told += f' of {self.declared:.2f}'
            raise ValueError(told)

    @abstractmethod
    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Decodes frames.

        Args:
            indices (Sequence[int]): Which frames, ascending.

        Returns:
            list[np.ndarray]: RGB frames, upright, each (H, W, 3) uint8.

        Raises:
            ValueError: If one of them cannot be decoded.
        """

    def _lacks(self, index: int) -> ValueError:
        return ValueError(
            f'the frame at {self.times[index]:.2f} seconds cannot be decoded'
        )


def check_decoder(decoder: str) -> str:
    """Refuses a decoder that does not exist or is not installed.

    Args:
        decoder (str): Its name.

    Returns:
        str: ``'pyav'`` or ``'opencv'``; for ``'auto'`` the one there is.

    Raises:
        ValueError: Saying which there are, or what to install.
    """
    if decoder not in ('auto', *_DECODERS):
        raise ValueError(
            f"decoder must be 'auto', 'pyav' or 'opencv', got {decoder!r}"
        )
    try:
        installed = find_spec('av') is not None
    except ImportError:
        installed = False
    if decoder == 'pyav' and not installed:
        raise ValueError(
            "decoder='pyav' needs PyAV: pip install 'transmamba_mm[video]'"
        )
    if decoder == 'auto':
        return 'pyav' if installed else 'opencv'
    return decoder


def open_video(path: str, decoder: str, folder_fps: float = 1.0) -> Video:
    """Opens a video file, or a folder of images as one.

    Args:
        path (str): The file or the folder.
        decoder (str): ``'pyav'`` or ``'opencv'``.
        folder_fps (float): Images per second of a folder. Defaults to 1.

    Returns:
        Video: It, with at least one frame.

    Raises:
        ValueError: If there is no video in it.
    """
    if os.path.isdir(path):
        return _Folder(path, folder_fps)
    if not os.path.exists(path):
        raise ValueError('there is no such file')
    if not os.path.isfile(path):  # a pipe would block
        raise ValueError('it is no file')
    if not os.path.getsize(path):
        raise ValueError('the file is empty')
    video = _DECODERS[decoder](path)
    if not len(video.times):
        raise ValueError('it has no frame')
    return video


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Makes errors name the video.

    Args:
        path (str): Its path.

    Raises:
        UnreadableVideoError: For what files and decoders raise.
    """
    try:
        yield
    except (OSError, ValueError, cv2.error) as error:
        reason = ' '.join(str(error).split())
        raise UnreadableVideoError(
            f"video '{path}' cannot be read: {reason}. "
            f'tools/dataset_converters/verify_videos.py finds all such videos'
        ) from error


def _check_size(width: int, height: int) -> None:
    """Refuses what a header of few bytes would make gigabytes of."""
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f'its frames are said to be {width} x {height}')


class _PyAV(Video):
    """By FFmpeg through PyAV."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Of each packet in the order of decoding: its time, whether decoding
        # can start there, and whether its frame is shown.
        self._packets: list[tuple[Optional[int], bool, bool]] = []
        with self._opened() as (packets, stream, self.declared):
            for packet in packets:
                self.partial |= packet.is_corrupt
                shown = not (packet.is_corrupt or packet.is_discard)
                self._packets.append((packet.pts, packet.is_keyframe, shown))
            base = stream.time_base
            self.rate = float(stream.average_rate or _RATE)
        shown = [pts for pts, _, shown in self._packets if shown]
        self._counted = None in shown  # then frames are known by their number
        if self._counted:
            self._stamps, base = np.arange(len(shown)), 1 / self.rate
        else:
            self._stamps = np.unique(shown)
        self.times = (self._stamps - self._stamps[:1]) * float(base)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Iterator[Any], Any, float]]:
        """Packets that hold something, their stream, the length declared."""
        import av

        try:
            with av.open(
                self._path,
                # A playlist could name any address.
                options={'protocol_whitelist': 'file'},
                metadata_errors='replace',
            ) as container:
                cover = av.stream.Disposition.attached_pic
                videos = [
                    stream
                    for stream in container.streams.video
                    if not stream.disposition & cover
                ]
                if not videos:
                    raise ValueError('it has no video stream')
                stream = videos[0]
                if stream.codec_context is None:
                    raise ValueError('FFmpeg has no decoder for it')
                _check_size(stream.width, stream.height)
                # Workers of a dataloader are the threads.
                stream.thread_type = 'NONE'
                packets = (x for x in container.demux(stream) if x.size)
                yield packets, stream, _declared(container, stream)
        except (av.InvalidDataError, av.EOFError) as error:
            raise ValueError(
                f'it is no video, or is damaged ({error.strerror})'
            ) from error
        except av.FFmpegError as error:
            raise ValueError(error.strerror) from error

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """See :meth:`Video.read`."""
        wanted = {self._stamps[i]: i for i in indices}
        found = {}
        if not self._counted:
            with contextlib.suppress(ValueError):
                found = self._decode(wanted, self._needed(wanted))
        if len(found) < len(wanted):
            found = self._decode(wanted)
        for stamp, index in wanted.items():
            if stamp not in found:
                raise self._lacks(index)
        return [found[stamp] for stamp in wanted]

    def _needed(self, wanted: dict[int, int]) -> np.ndarray:
        """Which packets frames depend on, up to the last of them."""
        needed = np.zeros(len(self._packets), bool)
        starts: list[tuple[int, int]] = [(0, 0)]
        last = 0
        for place, (stamp, is_key, _) in enumerate(self._packets):
            if is_key and stamp is not None:
                starts.append((stamp, place))
            if stamp in wanted:
                # Frames before a key frame in time may come after it.
                start = next(
                    (at for key, at in reversed(starts) if key <= stamp), 0
                )
                needed[start : place + 1] = True
                last = place
        return needed[: last + 1]

    def _decode(
        self, wanted: dict[int, int], needed: Optional[np.ndarray] = None
    ) -> dict[int, np.ndarray]:
        """Decodes some packets, or all; returns the frames by their time."""
        import av
        from av.video.reformatter import VideoReformatter

        # One for all frames, and on one thread: to make threads, as PyAV 17
        # began to, takes longer than to convert a frame.
        new = version_tuple(av.__version__) >= (17,)
        options = dict(format='rgb24', **(dict(threads=1) if new else {}))
        reformatter = VideoReformatter()
        found: dict[int, np.ndarray] = {}
        count = 0

        def keep(frames: list) -> None:
            nonlocal count
            for frame in frames:
                stamp = count if self._counted else frame.pts
                count += 1
                if stamp in wanted and not frame.is_corrupt:
                    frame = reformatter.reformat(frame, **options)
                    image = frame.to_ndarray()
                    turns = round(frame.rotation / 90) % 4
                    found[stamp] = np.rot90(image, turns) if turns else image

        select = needed is not None
        with self._opened() as (packets, stream, _):
            codec, fed = stream.codec_context, False
            places = needed if select else [True] * len(self._packets)
            for place, packet in zip(places, packets):
                if place:
                    # What no other frame depends on is not decoded.
                    skip = select and packet.pts not in wanted
                    codec.skip_frame = 'NONREF' if skip else 'DEFAULT'
                    keep(codec.decode(packet))
                elif fed:
                    keep(codec.decode(None))
                    codec.flush_buffers()
                fed = bool(place)
                if len(found) == len(wanted):
                    return found
            keep(codec.decode(None))
        return found


def _declared(container: Any, stream: Any) -> float:
    """How long a stream is said to be, in seconds; 0 if it is not said."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    written = re.fullmatch(
        r'(\d+):(\d+):([\d.]+)', stream.metadata.get('DURATION', '')
    )
    if written:
        hours, minutes, seconds = map(float, written.groups())
        return 3600 * hours + 60 * minutes + seconds
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6
    return 0.0


class _OpenCV(Video):
    """By FFmpeg through OpenCV, which does not say what is wrong."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Packets as they are, not decoded.
        capture = self._opened(cv2.CAP_PROP_FORMAT, -1)
        stamps = []
        while capture.grab():
            stamps.append(capture.get(cv2.CAP_PROP_POS_MSEC))
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if rate > 0 else _RATE
        times = np.sort(stamps) / 1000
        if len(stamps) > 1 and times[0] == times[-1]:
            times = np.arange(len(stamps)) / self.rate
        self.times = times - times[:1]
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.declared = max(0, count) / self.rate

    def _opened(self, *setting: int) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(self._path, cv2.CAP_FFMPEG, list(setting))
        if not capture.isOpened():
            raise ValueError('OpenCV finds no video in it')
        _check_size(
            int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        return capture

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """See :meth:`Video.read`."""
        capture = self._opened(cv2.CAP_PROP_N_THREADS, 1)
        frames, place = [], -1
        for index in indices:
            while place < index and capture.grab():
                place += 1
            done, image = capture.retrieve() if place == index else (0, None)
            if not done:
                raise self._lacks(index)
            frames.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        return frames


class _Folder(Video):
    """Images in the order of the numbers in their names."""

    def __init__(self, path: str, fps: float) -> None:
        names = [
            name
            for name in os.listdir(path)
            if name.lower().endswith(IMAGES) and not name.startswith('.')
        ]
        if not names:
            raise ValueError('the folder holds no image')
        self._files = [os.path.join(path, x) for x in sorted(names, key=_key)]
        self.rate, self.times = fps, np.arange(len(names)) / fps

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """See :meth:`Video.read`."""
        frames = []
        for index in indices:
            path = self._files[index]
            with open(path, 'rb') as file:
                content = file.read()
            try:
                image = mmcv.imfrombytes(content, channel_order='rgb')
            except cv2.error:
                image = None
            except (ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"'{path}': {error}") from error
            if image is None:
                raise ValueError(f"'{path}' is no image")
            frames.append(image)
        return frames


def _key(name: str) -> list:
    """Sorts `2.jpg` before `10.jpg`."""
    parts = re.split(r'(\d+)', name)
    return [int(x) if x.isdigit() else x for x in parts]


_DECODERS = dict(pyav=_PyAV, opencv=_OpenCV)
