# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""MME (Fu et al., arXiv 2306.13394): two questions about each image."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transmamba_mm.registry import DATASETS

from .questions import QuestionDataset
from .rows import existing, read_lines

#: The benchmark's categories, in its order.
PERCEPTION = (
    'existence',
    'count',
    'position',
    'color',
    'posters',
    'celebrity',
    'scene',
    'landmark',
    'artwork',
    'OCR',
)
COGNITION = (
    'commonsense_reasoning',
    'numerical_calculation',
    'text_translation',
    'code_reasoning',
)
_ASIDES = (
    'Answer the question using a single word or phrase.',
    'Please answer yes or no.',
)


@DATASETS.register_module()
class MMEDataset(QuestionDataset):
    """Questions of MME, whose answers are yes and no.

    Reads its folders, one per category, with a text file beside each image,
    or images in ``images`` and texts in ``questions_answers_YN``. A line of
    these is a question, a tab and its answer. Samples also have their
    ``category`` and ``image_id``, ``<category>/<image>``.

    Args:
        ann_file (str): LLaVA's ``llava_mme.jsonl``, with ``question_id``
            and ``text`` in each line: only these questions are asked, in
            this order. Answers are those of the folders. Defaults to ``''``,
            all questions.
        data_prefix (dict): ``dict(img=FOLDER)`` with the categories.
        **kwargs: See
            :class:`~transmamba_mm.datasets.questions.QuestionDataset`.
    """

    def rows(self) -> Iterator:
        """See the base class."""
        found = self._of_folders()
        if not self.ann_file:
            yield from found
            return
        known = {(_key(row), _plain(row['question'])): row for row in found}
        for row in read_lines(self.ann_file):
            if not isinstance(row, dict):
                yield row
                continue
            wanted = _key(row), _plain(str(row.get('text')))
            yield known.get(wanted, dict(question_id=row.get('question_id')))

    def _of_folders(self) -> Iterator[dict]:
        root = Path(self.data_prefix['img'])
        for category in (*PERCEPTION, *COGNITION):
            folder = root / category
            if not folder.is_dir():
                yield dict(question_id=category, question='')
                continue
            texts = folder / 'questions_answers_YN'
            texts = texts if texts.is_dir() else folder
            images = folder / 'images'
            images = images if images.is_dir() else folder
            shown = {
                path.stem: path
                for path in images.iterdir()
                if path.suffix.lower() in ('.jpg', '.jpeg', '.png')
            }
            for path in sorted(texts.glob('*.txt')):
                image = shown.get(path.stem, images / f'{path.stem}.jpg')
                lines = path.read_text(encoding='utf-8').splitlines()
                lines = [line for line in lines if line.strip()]
                for line in lines:
                    yield dict(
                        question_id=f'{category}/{image.name}',
                        image=os.fspath(image),
                        question=line.partition('\t')[0].strip(),
                        category=category,
                        lines=lines,
                        line=line,
                    )

    def sample(self, row: Any) -> dict:
        """See the base class."""
        if 'lines' not in row:
            raise ValueError('the folders have no such question')
        lines = row['lines']
        if len(lines) != 2:
            raise ValueError(f'its file has {len(lines)} questions, not 2')
        for line in lines:
            if _answer(line) not in ('yes', 'no'):
                raise ValueError(f'no question, tab and yes or no: {line!r}')
        return dict(
            question=row['question'],
            question_id=row['question_id'],
            img_path=existing(row['image']),
            gt_answer=_answer(row['line']),
            category=row['category'],
        )


def _answer(line: str) -> str:
    return line.partition('\t')[2].lower().strip().replace('.', '')


def _key(row: dict) -> tuple[str, str]:
    parts = Path(str(row.get('question_id') or None)).parts
    return parts[0], Path(parts[-1]).stem


def _plain(question: str) -> str:
    for aside in _ASIDES:
        question = question.replace(aside, '')
    return ' '.join(question.split())
