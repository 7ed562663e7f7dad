# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Frames out of video files: ours, OpenCV with seeking, and decord.

Run from the repository root, with the package installed, and decord2 beside
it if you like::

    pip install --target /tmp/peers --no-deps decord2
    PYTHONPATH=/tmp/peers OMP_NUM_THREADS=1 python benchmarks/video_decoding.py

Each opens a file, takes frames at equal distances, and returns them as RGB:
``ours`` by PyAV; ``opencv``, ours without PyAV; ``seeking``, OpenCV that goes
to each frame. All decode on one thread, as in the workers of a dataloader;
times are CPU time. The videos are H.264 as x264 writes it, with a key frame
each second, and with as few as it likes.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import common
import cv2
import numpy as np

from transmamba_mm.datasets.transforms import LoadVideo
from transmamba_mm.datasets.video_files import write_video

FPS = 25
# Seconds, width, height, most frames between two key frames.
VIDEOS = [
    (15, 320, 240, 25),
    (15, 320, 240, 250),
    (30, 480, 360, 250),
]
COUNTS = (12, 64)


def make_video(
    path: str, seconds: int, width: int, height: int, keyint: int
) -> None:
    """Write a video in which a textured picture moves."""
    draw = np.random.default_rng(0)
    shape = height + 200, width + 200, 3
    picture = draw.integers(0, 256, shape, dtype=np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 3)
    picture = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX)
    times = np.arange(seconds * FPS) / FPS
    places = (100 + 99 * np.sin([times, 0.7 * times])).astype(int).T
    frames = (picture[y : y + height, x : x + width] for x, y in places)
    write_video(path, frames, times, options=dict(g=str(keyint)))


def indices(path: str, count: int) -> np.ndarray:
    """Frames in the middles of equal segments, as LoadVideo chooses."""
    total = int(cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT))
    return ((np.arange(count) + 0.5) * total / count).astype(int)


def by_us(path: str, count: int, decoder: str) -> list[np.ndarray]:
    """Read frames by our transform."""
    load = LoadVideo(count, fps=None, decoder=decoder)
    return load(dict(video_path=path))['frames']


def by_seeking(path: str, count: int) -> list[np.ndarray]:
    """Read frames by OpenCV, each at its place."""
    capture = cv2.VideoCapture(
        path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]
    )
    frames = []
    for index in indices(path, count):
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        frames.append(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
    return frames


def by_decord(path: str, count: int) -> np.ndarray:
    """Read frames by decord."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(indices(path, count)).asnumpy()


def main() -> None:
    """Print one table per video and number of frames."""
    args = common.parse_args(__doc__)
    cv2.setNumThreads(1)
    readers = {
        'ours': lambda *x: by_us(*x, 'pyav'),
        'opencv': lambda *x: by_us(*x, 'opencv'),
        'seeking': by_seeking,
    }
    if find_spec('decord'):
        readers['decord2'] = by_decord
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for seconds, width, height, keyint in (
            VIDEOS[:2] if args.quick else VIDEOS
        ):
            path = str(Path(folder) / 'video.mp4')
            make_video(path, seconds, width, height, keyint)
            for count in COUNTS:
                whole = by_us(path, count, 'pyav')
                for name, read in readers.items():
                    error = np.abs(
                        np.subtract(read(path, count), whole, dtype=int)
                    ).mean()
                    assert error < 4, f'{name} reads other frames'
                figures = common.interleaved(
                    {
                        name: lambda read=read, path=path, count=count: read(
                            path, count
                        )
                        for name, read in readers.items()
                    },
                    rounds=3 if args.quick else 7,
                )
                title = (
                    f'{count} frames of {seconds} s, {width} x {height}, '
                    f'key frames at most {keyint} apart'
                )
                common.print_table(title, figures, 'ours', 'ms')
                results[title] = figures
    common.write_json(args.json, results)


if __name__ == '__main__':
    main()
