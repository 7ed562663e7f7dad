# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Makes LLaVA's format of DAQUAR, questions about photos of rooms.

The folder holds ``all_qa_pairs.txt``, a line with a question, then one with
its answer, ``train_images_list.txt`` and ``test_images_list.txt``, which share
no image, and ``images``. It writes ``train.json``, a conversation for each
image, and ``test.json``, a question a row. ``in the image7`` and the like,
which name the image, are taken out of questions, and ``garbage_bin`` becomes
``garbage bin``. The last line is a JSON object of counts.

Example::

    python tools/dataset_converters/daquar.py data/daquar
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

from transmamba_mm.utils import cli

SPLITS = ('train', 'test')
_NAME = re.compile(r'image\d+')
_PLACE = re.compile(r'\s*\b(?:in|on|of) (?:the|this) image\d+')


def read_questions(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Questions with their answers by image.

    Args:
        path (Path): ``all_qa_pairs.txt``.

    Returns:
        dict[str, list[tuple[str, str]]]: By name of the image, as written.

    Raises:
        ValueError: If a question names no image or several, or lacks its
            answer.
    """
    lines = path.read_text(encoding='utf-8').splitlines()
    found = defaultdict(list)
    for number in range(0, len(lines), 2):
        question, *answer = (x.strip() for x in lines[number : number + 2])
        names = set(_NAME.findall(question))
        if len(names) != 1:
            raise ValueError(
                f"'{path}', line {number + 1}: {question!r} names "
                f'{len(names)} images, not 1'
            )
        if not any(answer):
            raise ValueError(
                f"'{path}', line {number + 1}: {question!r} has no answer"
            )
        found[names.pop()].append((question, answer[0]))
    return found


def plain(question: str) -> str:
    """A question without the name of its image."""
    text = _NAME.sub('image', _PLACE.sub('', question))
    return ' '.join(text.replace('?', ' ').split()) + '?'


def convert(folder: Path) -> dict[str, list[dict]]:
    """Rows in LLaVA's format.

    Args:
        folder (Path): What is distributed.

    Returns:
        dict[str, list[dict]]: Rows of ``'train'`` and ``'test'``.

    Raises:
        ValueError: If something is missing, or the splits share an image.
    """
    questions = read_questions(folder / 'all_qa_pairs.txt')
    lists = {
        split: (folder / f'{split}_images_list.txt').read_text().split()
        for split in SPLITS
    }
    if both := set(lists['train']) & set(lists['test']):
        raise ValueError(f'both splits have {sorted(both)[:3]}')
    if left := set(questions) - set(lists['train']) - set(lists['test']):
        raise ValueError(f'no split has {sorted(left)[:3]}')
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for split, names in lists.items():
        for name in names:
            turns = [
                (plain(question), answer.replace('_', ' '))
                for question, answer in questions.get(name, ())
            ]
            together = split == 'train'
            parts = [turns] if together else [[turn] for turn in turns]
            for i, part in enumerate(filter(None, parts)):
                key = name if together else f'{name}_{i}'
                rows[split].append(_row(key, name, part))
    return rows


def _row(key: str, image: str, turns: list[tuple[str, str]]) -> dict:
    said = []
    for question, answer in turns:
        said.append({'from': 'human', 'value': question})
        said.append({'from': 'gpt', 'value': answer})
    said[0]['value'] = f'<image>\n{said[0]["value"]}'
    return dict(id=key, image=f'images/{image}.jpg', conversations=said)


def main() -> None:
    """Converts."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder', type=Path, help='what is distributed')
    parser.add_argument('--out', type=Path, help='default: the same folder')
    args = parser.parse_args()
    out, counts = args.out or args.folder, {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for split, rows in convert(args.folder).items():
            (out / f'{split}.json').write_text(json.dumps(rows, indent=1))
            counts[split] = dict(
                images=len({row['image'] for row in rows}),
                questions=sum(len(row['conversations']) for row in rows) // 2,
            )
    except (OSError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    print(json.dumps(counts))


if __name__ == '__main__':
    cli.run_main(main)
