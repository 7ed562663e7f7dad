# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Makes annotation files of MSR-VTT's splits for text-video retrieval.

The folder holds what is distributed: the captions as ``MSRVTT_data.json``, or
as ``train_val_videodatainfo.json`` and ``test_videodatainfo.json`` (or the
zip archives of these), and the splits as ``MSRVTT_train.9k.csv``,
``MSRVTT_train.7k.csv`` and ``MSRVTT_JSFUSION_test.csv``. Of those splits that
are there it writes ``train_9k.json``, ``train_7k.json`` and
``test_JSFUSION.json`` (1k-A), as ``{"video0.mp4": ["caption", ...]}``. Videos
are looked for where ``--videos`` is given; ``verify_videos.py`` names those
that are missing. The last line is a JSON object of counts.

Example::

    python tools/dataset_converters/msrvtt.py data/msrvtt --out data/msrvtt \
        --videos data/msrvtt/videos
"""

import argparse
import csv
import json
import zipfile
from collections import defaultdict
from pathlib import Path

from transmamba_mm.datasets.video_files import match_videos, read_json
from transmamba_mm.utils import cli

SPLITS = {
    'train_9k': 'MSRVTT_train.9k.csv',
    'train_7k': 'MSRVTT_train.7k.csv',
    'test_JSFUSION': 'MSRVTT_JSFUSION_test.csv',
}
CAPTIONS = ('MSRVTT_data.json', '*videodatainfo.json')


def read_sentences(folder: Path) -> dict[str, list[str]]:
    """Captions by video, of all files of captions below a folder."""
    found: dict[str, dict] = {}
    for pattern in CAPTIONS:
        for path in sorted(folder.rglob(pattern)):
            found.setdefault(path.name, read_json(path))
    for path in sorted(folder.rglob('*.zip')):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                base = Path(name).name
                if any(Path(base).match(x) for x in CAPTIONS):
                    found.setdefault(base, json.loads(archive.read(name)))
    if not found:
        raise ValueError(
            f"'{folder}' holds no {' or '.join(CAPTIONS)}, nor a zip archive "
            f'of them'
        )
    whole = found.get('MSRVTT_data.json')
    captions: dict[str, list[str]] = defaultdict(list)
    for content in [whole] if whole else found.values():
        for sentence in content['sentences']:
            captions[sentence['video_id']].append(sentence['caption'])
    return captions


def read_split(path: Path) -> list[dict[str, str]]:
    """Rows of a split's CSV file."""
    with path.open(newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    if not rows or 'video_id' not in rows[0]:
        raise ValueError(f"'{path}' has no column video_id")
    return rows


def convert(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Annotations by split.

    Args:
        folder (Path): What is distributed.

    Returns:
        dict[str, dict[str, list[str]]]: Captions by name of the file.

    Raises:
        ValueError: If something is missing, or training and test overlap.
    """
    captions, splits = read_sentences(folder), {}
    for split, name in SPLITS.items():
        for path in sorted(folder.rglob(name))[:1]:
            splits[split] = made = {}
            for row in read_split(path):
                video = row['video_id']
                texts = (
                    [row['sentence']] if 'sentence' in row else captions[video]
                )
                if not texts:
                    raise ValueError(f"'{path}': {video} has no caption")
                made[f'{video}.mp4'] = texts
    if not splits:
        raise ValueError(f"'{folder}' holds none of {', '.join(SPLITS)}")
    test = set(splits.get('test_JSFUSION', ()))
    for split, made in splits.items():
        if split.startswith('train') and test & set(made):
            raise ValueError(
                f'{split} holds videos of the test: {sorted(test & set(made))}'
            )
    return splits


def main() -> None:
    """Converts."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder', type=Path, help='captions and splits')
    parser.add_argument(
        '--out', type=Path, required=True, help='folder to write to'
    )
    parser.add_argument('--videos', help='folder of the videos')
    args = parser.parse_args()
    counts: dict = {}
    names: set[str] = set()
    try:
        splits = convert(args.folder)
        args.out.mkdir(parents=True, exist_ok=True)
        for split, made in splits.items():
            (args.out / f'{split}.json').write_text(json.dumps(made, indent=1))
            names |= set(made)
            counts[split] = dict(
                descriptions=sum(map(len, made.values())), videos=len(made)
            )
        paths = match_videos(names, args.videos) if args.videos else {}
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise cli.UsageError(str(error)) from error
    total = dict(
        descriptions=sum(x['descriptions'] for x in counts.values()),
        videos=len(names),
        looked_for=len(paths),
        missing=list(paths.values()).count(None),
    )
    print(json.dumps({**total, 'splits': counts}))


if __name__ == '__main__':
    cli.run_main(main)
