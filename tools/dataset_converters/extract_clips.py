# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Re-encodes videos small: the first seconds, few frames, few pixels.

DiDeMo comes as 581 GB and needs this; training is faster for it at any rate.
Clips keep the name of their video, with the ending ``.mp4``; those that are
complete are not made again. Settings are noted beside them in ``clips.json``:
other settings for the same folder are refused, and so is a training or a test
on clips beside one on videos that were made otherwise, because accuracy falls
when the two differ. It needs PyAV, the extra ``[video]``. The last line is a
JSON object of counts.

Example::

    python tools/dataset_converters/extract_clips.py data/didemo/videos \
        --out data/didemo/clips --window 0 30 --fps 3 --short-side 224
"""

import argparse
import json
import os.path as osp
from pathlib import Path
from typing import Optional

import mmcv
import numpy as np
from joblib import Parallel, cpu_count, delayed

from transmamba_mm.checks import UnreadableFileError
from transmamba_mm.datasets.transforms.video_decoding import (
    check_decoder,
    open_video,
    reading,
)
from transmamba_mm.datasets.transforms.video_frames import choose_frames
from transmamba_mm.datasets.video_files import (
    SETTINGS,
    VIDEOS,
    clip_settings,
    match_videos,
    read_captions,
    stem_of,
    write_video,
)
from transmamba_mm.utils import cli

_AT_ONCE = 64  # frames in memory


def extract(path: str, target: Path, settings: dict) -> None:
    """Writes a clip.

    Args:
        path (str): The video.
        target (Path): The file to write.
        settings (dict): What is noted in ``clips.json``.

    Raises:
        UnreadableVideoError: If the video cannot be decoded.
    """
    with reading(path):
        video = open_video(path, 'pyav')
        start, stop = settings['window'] or (0, np.inf)
        video.check_whole(stop)
        chosen = choose_frames(
            video.times,
            video.duration,
            len(video.times),
            settings['fps'],
            settings['window'],
        )

    def frames():
        for i in range(0, len(chosen), _AT_ONCE):
            with reading(path):
                images = video.read(chosen[i : i + _AT_ONCE])
            for image in images:
                short = settings['short_side']
                scale = min(1, short / min(image.shape[:2]))
                height, width = (
                    max(2, round(side * scale / 2) * 2)
                    for side in image.shape[:2]
                )
                yield mmcv.imresize(
                    image, (width, height), interpolation='area'
                )

    target.parent.mkdir(parents=True, exist_ok=True)
    write_video(
        target,
        frames(),
        np.maximum(video.times[chosen] - start, 0),
        settings['codec'],
        settings['options'],
    )


def _try(path: str, target: Path, settings: dict) -> Optional[str]:
    try:
        extract(path, target, settings)
    except UnreadableFileError as error:
        return str(error.__cause__)
    return None


def find(args: argparse.Namespace) -> dict[str, Optional[str]]:
    """Paths of the videos by name, None where there is none."""
    if args.annotations:
        return match_videos(read_captions(args.annotations), args.videos)
    paths = sorted(Path(args.videos).rglob('*'))
    return {
        osp.relpath(path, args.videos): str(path)
        for path in paths
        if path.suffix.lower() in VIDEOS and not path.name.startswith('.')
    }


def note(folder: Path, settings: dict) -> None:
    """Notes the settings of a folder, or refuses others than are noted."""
    made = clip_settings(folder)
    if made is None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1))
    elif made != settings:
        raise ValueError(
            f"'{folder}' holds clips made with {made}, not with {settings}: "
            f'choose another folder'
        )


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('videos', help='folder of the videos')
    parser.add_argument('--out', type=Path, required=True, help='folder')
    parser.add_argument(
        '--annotations', help='JSON file of the videos to take, instead of all'
    )
    parser.add_argument(
        '--window',
        type=float,
        nargs=2,
        metavar=('START', 'STOP'),
        help='seconds to keep; all if left out',
    )
    parser.add_argument('--fps', type=float, default=3.0)
    parser.add_argument(
        '--short-side', type=int, default=224, help='pixels, never enlarged'
    )
    parser.add_argument('--codec', default='libx264')
    parser.add_argument(
        '--options',
        nargs='*',
        default=['crf=23'],
        metavar='KEY=VALUE',
        help='of the codec',
    )
    parser.add_argument(
        '--policy',
        choices=['error', 'skip'],
        default='error',
        help='error: fail at the end if videos are missing or unreadable',
    )
    parser.add_argument('--workers', type=int, help='processes')
    return parser.parse_args()


def main() -> None:
    """Extracts; prints counts as JSON."""
    args = parse_args()
    settings = dict(
        window=args.window,
        fps=args.fps,
        short_side=args.short_side,
        codec=args.codec,
        options=dict(option.split('=', 1) for option in args.options),
    )
    try:
        check_decoder('pyav')
        paths = find(args)
        targets = {name: args.out / f'{stem_of(name)}.mp4' for name in paths}
        for name, target in targets.items():
            if osp.relpath(target, args.out).startswith('..'):
                raise ValueError(f'{name!r} would be written out of --out')
        if len(set(targets.values())) < len(targets):
            raise ValueError('videos differ in nothing but their ending')
        note(args.out, settings)
        todo = [
            name
            for name, path in paths.items()
            if path and not targets[name].exists()
        ]
        results = Parallel(
            n_jobs=min(args.workers or cpu_count(), len(todo)) or 1
        )(delayed(_try)(paths[name], targets[name], settings) for name in todo)
    except (OSError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    wrong = {name: x for name, x in zip(todo, results) if x}
    missing = {name: 'missing' for name, path in paths.items() if not path}
    for name, reason in {**missing, **wrong}.items():
        print(f'{name}: {reason}')
    counts = dict(
        videos=len(paths),
        missing=len(missing),
        undecodable=len(wrong),
        made_before=len(paths) - len(missing) - len(todo),
        made=len(todo) - len(wrong),
    )
    print(json.dumps(counts), flush=True)
    if (wrong or missing) and args.policy == 'error':
        raise cli.UsageError(
            f'{len(wrong) + len(missing)} of {len(paths)} videos have no '
            f'clip, see above'
        )


if __name__ == '__main__':
    cli.run_main(main)
