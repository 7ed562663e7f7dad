# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Annotation files of videos with captions, and the videos that they name."""

import json
import os
import os.path as osp
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

#: Endings of video files, beside which a name may have none.
VIDEOS = (
    *('.3g2', '.3gp', '.asf', '.avi', '.divx', '.flv', '.gif', '.m2ts'),
    *('.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts', '.ogv', '.ts'),
    *('.vob', '.webm', '.wmv'),
)
#: What ``tools/dataset_converters/extract_clips.py`` notes beside its clips.
SETTINGS = 'clips.json'


def read_json(path: Union[str, Path]) -> Any:
    """Reads a JSON file in which no key stands twice.

    Args:
        path (str | Path): The file.

    Returns:
        Any: Its content.

    Raises:
        ValueError: Naming the file and what is wrong.
    """
    try:
        text = Path(path).read_text(encoding='utf-8')
        return json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise ValueError(f"'{path}' is no JSON to use: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f'{twice!r} is in it twice')
    return made


def read_captions(
    path: Union[str, Path], paragraph: bool = False
) -> dict[str, list[str]]:
    """Reads captions of videos.

    Either format is read: mmaction2's ``{"video0.mp4": ["caption", ...]}``,
    or that of VindLU and VideoMamba, ``[{"video": "video0.mp4", "caption":
    "..." or [...]}]``, in which a video may have several entries.

    Args:
        path (str | Path): The JSON file.
        paragraph (bool): Whether a list of captions is the sentences of one,
            to be joined by spaces. Defaults to False.

    Returns:
        dict[str, list[str]]: Captions by name of the video, in the order of
        the file, at least one each.

    Raises:
        ValueError: Naming the file, and the video that has no caption or an
            empty one.
    """
    content = read_json(path)
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = [_pair(path, number, x) for number, x in enumerate(content)]
    else:
        pairs = []
    if not pairs:
        raise ValueError(
            f"'{path}' holds no videos: it must be "
            '{"VIDEO": ["CAPTION", ...]} or '
            '[{"video": "VIDEO", "caption": "CAPTION"}]'
        )
    captions: dict[str, list[str]] = defaultdict(list)
    for name, texts in pairs:
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts:
            raise ValueError(f"'{path}': {name!r} has no caption")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"'{path}': {name!r} has the caption {text!r}"
                )
        captions[name] += [' '.join(texts)] if paragraph else texts
    return dict(captions)


def _pair(path: Union[str, Path], number: int, entry: Any) -> tuple[str, Any]:
    if not isinstance(entry, dict) or not {'video', 'caption'} <= set(entry):
        raise ValueError(
            f"'{path}': entry {number} has no 'video' and 'caption': {entry!r}"
        )
    if not isinstance(entry['video'], str) or not entry['video']:
        raise ValueError(
            f"'{path}': entry {number} has the video {entry['video']!r}"
        )
    return entry['video'], entry['caption']


def stem_of(name: str) -> str:
    """A name without the ending of a video, if it has one."""
    stem, ending = osp.splitext(name)
    return stem if ending.lower() in VIDEOS else name


def match_videos(
    names: Iterable[str], folder: Union[str, Path]
) -> dict[str, Optional[str]]:
    """Finds the files of videos: by name, else by name without ending.

    So ``a.mov`` may have become ``a.mp4``, ``a.mov.mp4``, or a folder ``a``
    of images.

    Args:
        names (Iterable[str]): Names of videos, with any ending or none.
        folder (str | Path): Where they are.

    Returns:
        dict[str, str | None]: Path of each, None where there is none.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If several files may be meant.
    """
    if not osp.isdir(folder):
        raise NotADirectoryError(f"there is no folder '{folder}' of videos")
    listings: dict[str, tuple[set, dict]] = {}
    found: dict[str, Optional[str]] = {}
    for name in names:
        path, base = osp.split(osp.join(folder, name))
        if path not in listings:
            listings[path] = _listed(path)
        exact, by_stem = listings[path]
        fits = (
            [base]
            if base in exact
            else by_stem.get(base) or by_stem.get(stem_of(base)) or []
        )
        if len(fits) > 1:
            raise ValueError(
                f"'{path}' has {', '.join(sorted(fits))}: remove all but the "
                f'one that {name!r} means'
            )
        target = osp.join(path, fits[0]) if fits else ''
        # It may be a link to nowhere.
        found[name] = target if osp.exists(target) else None
    return found


def _listed(folder: str) -> tuple[set[str], dict[str, list[str]]]:
    """Names in a folder, and those of videos by what is before the ending."""
    names = os.listdir(folder) if osp.isdir(folder) else []
    by_stem = defaultdict(list)
    for name in names:
        stem = stem_of(name)
        if stem != name or osp.isdir(osp.join(folder, name)):
            by_stem[stem].append(name)
    return set(names), by_stem


def clip_settings(folder: Union[str, Path]) -> Optional[dict]:
    """How the videos of a folder were made, if a tool of ours did.

    Args:
        folder (str | Path): The folder.

    Returns:
        dict | None: What ``extract_clips.py`` noted there.

    Raises:
        ValueError: If the note cannot be read.
    """
    path = osp.join(folder, SETTINGS)
    return read_json(path) if osp.exists(path) else None


def write_video(
    path: Union[str, Path],
    frames: Iterable[np.ndarray],
    times: Iterable[float],
    codec: str = 'libx264',
    options: Optional[dict[str, str]] = None,
) -> None:
    """Encodes frames as a video file, with PyAV, on one thread.

    A file that exists is replaced, once the new one is complete.

    Args:
        path (str | Path): The file; its ending tells the container.
        frames (Iterable[np.ndarray]): RGB images (H, W, 3) uint8 of one size,
            both sides even.
        times (Iterable[float]): When each is shown, in seconds, ascending.
        codec (str): FFmpeg's name of the encoder. Defaults to ``'libx264'``.
        options (dict[str, str], optional): Its options. Defaults to None.

    Raises:
        ValueError: If FFmpeg refuses, e.g. an unknown codec.
    """
    import av

    path, tick = Path(path), Fraction(1, 1000)
    unfinished = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    stream = None
    try:
        with av.open(str(unfinished), 'w') as container:
            for image, time in zip(frames, times):
                if stream is None:
                    stream = container.add_stream(codec, options=options or {})
                    stream.height, stream.width = image.shape[:2]
                    stream.pix_fmt = 'yuv420p'
                    stream.codec_context.time_base = tick
                    stream.codec_context.thread_count = 1
                frame = av.VideoFrame.from_ndarray(image, format='rgb24')
                frame.pts, frame.time_base = round(time * 1000), tick
                container.mux(stream.encode(frame))
            if stream is None:
                raise ValueError('there is no frame to write')
            container.mux(stream.encode())
        os.replace(unfinished, path)
    except av.FFmpegError as error:
        raise ValueError(f"'{path}' cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
