# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Makes an annotation file of a split of DiDeMo for paragraph retrieval.

All descriptions of a video, in the order of the official file, become one
paragraph. With ``--list`` only videos of the official list are taken. With
``--videos`` their files are looked for, by name, then by name without ending,
and the annotations name what was found; those that are missing stay in, until
``verify_videos.py --allow-missing`` names them and takes them out. The last
line is a JSON object of counts.

Example::

    python tools/dataset_converters/didemo.py \
        --annotations data/didemo/val_data.json \
        --out data/didemo/didemo_val.json --videos data/didemo/videos
"""

import argparse
import json
import os.path as osp
from collections import defaultdict
from pathlib import Path
from typing import Optional

from transmamba_mm.datasets.video_files import (
    match_videos,
    read_json,
    stem_of,
)
from transmamba_mm.utils import cli


def read_descriptions(path: str) -> dict[str, list[str]]:
    """Descriptions by name of the video, in the order of the file."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"'{path}' is no list of annotations")
    found: dict[str, list[str]] = defaultdict(list)
    for number, entry in enumerate(entries):
        for key in ('video', 'description'):
            if not isinstance(entry, dict) or not isinstance(
                entry.get(key), str
            ):
                raise ValueError(
                    f"'{path}': entry {number} has no {key!r}: {entry!r}"
                )
        found[entry['video']].append(entry['description'])
    for name, texts in found.items():
        if not ''.join(texts).strip():
            raise ValueError(f"'{path}': {name!r} has empty descriptions")
    return dict(found)


def keep_listed(
    descriptions: dict[str, list[str]], path: str
) -> dict[str, list[str]]:
    """Those of a list file, one name per line, by name or by stem."""
    lines = Path(path).read_text(encoding='utf-8').split('\n')
    listed = {line.strip() for line in lines} - {''}
    listed |= {stem_of(name) for name in listed}
    kept = {
        name: texts
        for name, texts in descriptions.items()
        if name in listed or stem_of(name) in listed
    }
    if not kept:
        raise ValueError(f"'{path}' lists none of the annotated videos")
    return kept


def convert(
    annotations: str, listed: Optional[str], videos: Optional[str]
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Paragraphs and counts.

    Args:
        annotations (str): Official annotations.
        listed (str, optional): Official list of the split.
        videos (str, optional): Folder of the videos.

    Returns:
        tuple: ``{video: [paragraph]}``, and the counts.
    """
    descriptions = read_descriptions(annotations)
    if listed:
        descriptions = keep_listed(descriptions, listed)
    paths = match_videos(descriptions, videos) if videos else {}
    names = {
        name: osp.relpath(path, videos)
        for name, path in paths.items()
        if path is not None
    }
    made: dict[str, list[str]] = {}
    for name, texts in descriptions.items():
        target = names.get(name, name)
        if target in made:
            raise ValueError(f"'{target}' is the file of several videos")
        made[target] = [' '.join(texts)]
    counts = dict(
        descriptions=sum(map(len, descriptions.values())),
        paragraphs=len(made),
        videos=len(descriptions),
        looked_for=len(paths),
        missing=len(paths) - len(names),
    )
    return made, counts


def main() -> None:
    """Converts."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--annotations', required=True, help='e.g. val_data.json'
    )
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--list', help='e.g. val_list.txt')
    parser.add_argument('--videos', help='folder of the videos')
    args = parser.parse_args()
    try:
        made, counts = convert(args.annotations, args.list, args.videos)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(made, indent=1))
    except (OSError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    print(json.dumps(counts))


if __name__ == '__main__':
    cli.run_main(main)
