# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Counts, finds and decodes the videos of an annotation file once.

Missing videos and those that cannot be decoded are named with the reason, and
it ends with status 2 if there are any. With ``--allow-missing`` it writes the
annotations of the others to ``--out`` instead. The last line is a JSON object:
the annotations' SHA-256, all videos and captions that they have, and how many
remain, which is what a result on them is for.

Example::

    python tools/dataset_converters/verify_videos.py \
        data/msrvtt/train_9k.json --videos data/msrvtt/videos \
        --allow-missing --out data/msrvtt/train_9k_found.json
"""

import argparse
import hashlib
import json
from pathlib import Path

from transmamba_mm.datasets.skipping import find_unreadable
from transmamba_mm.datasets.transforms import LoadVideo
from transmamba_mm.datasets.video_files import (
    match_videos,
    read_captions,
    read_json,
)
from transmamba_mm.utils import cli


def verify(args: argparse.Namespace) -> tuple[dict, dict[str, str]]:
    """Verifies.

    Args:
        args (argparse.Namespace): Arguments of the command line.

    Returns:
        tuple[dict, dict[str, str]]: The report, and what is wrong with which
        video.
    """
    captions = read_captions(args.annotations)
    paths = match_videos(captions, args.videos)
    # All over the video, and so close that little is left out.
    load = LoadVideo(max_frames=64, fps=None, decoder=args.decoder)
    found = [path for path in paths.values() if path]
    unreadable = find_unreadable(found, load, args.workers)
    wrong = {
        name: unreadable.get(path) if path else 'missing'
        for name, path in paths.items()
        if not path or path in unreadable
    }
    good = {x: texts for x, texts in captions.items() if x not in wrong}
    report = dict(
        sha256=hashlib.sha256(Path(args.annotations).read_bytes()).hexdigest(),
        videos=len(captions),
        captions=sum(map(len, captions.values())),
        missing=len(paths) - len(found),
        undecodable=len(unreadable),
        remaining_videos=len(good),
        remaining_captions=sum(map(len, good.values())),
    )
    return report, wrong


def without(path: str, names: dict[str, str]) -> object:
    """The annotations of a file, in their format, less some videos."""
    content = read_json(path)
    if isinstance(content, dict):
        return {x: texts for x, texts in content.items() if x not in names}
    return [entry for entry in content if entry['video'] not in names]


def main() -> None:
    """Verifies; prints what it found."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('annotations', help='JSON file')
    parser.add_argument('--videos', required=True, help='folder')
    parser.add_argument(
        '--allow-missing',
        action='store_true',
        help='write the annotations of what is there to --out',
    )
    parser.add_argument('--out', type=Path, metavar='FILE')
    parser.add_argument(
        '--decoder', choices=['auto', 'pyav', 'opencv'], default='auto'
    )
    parser.add_argument('--workers', type=int, help='processes')
    args = parser.parse_args()
    if args.allow_missing != (args.out is not None):
        parser.error('--allow-missing and --out belong together')
    try:
        report, wrong = verify(args)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            kept = without(args.annotations, wrong)
            args.out.write_text(json.dumps(kept, indent=1))
    except (OSError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    for name, reason in wrong.items():
        print(f'{name}: {reason}')
    print(json.dumps(report), flush=True)
    if wrong and not args.allow_missing:
        raise cli.UsageError(
            f'{len(wrong)} of {report["videos"]} videos cannot be used, see '
            f'above; --allow-missing does without them'
        )


if __name__ == '__main__':
    cli.run_main(main)
