# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Conversations about images, in the format of LLaVA's training data."""

import os.path as osp
from typing import Any, Optional

from transmamba_mm.models.multimodal.prompts import Turn, place_images
from transmamba_mm.registry import DATASETS

from .rows import existing, read_rows, usable_samples
from .skipping import SkipsUnreadable


@DATASETS.register_module()
class LLaVAInstructDataset(SkipsUnreadable):
    """Conversations about an image, several or none.

    A row of the file is ``{id, image, conversations: [{from: 'human' | 'gpt',
    value}, ...]}``; ``image`` is a path, a list of paths or missing. That is
    the format of LLaVA's pretraining and instruction data. A sample has
    ``id`` (else the number of the row), ``img_paths`` and ``turns``, pairs of
    a question and its answer. As in LLaVA an answer that stands first is left
    out, and so is, in training, a last question without an answer.

    Args:
        ann_file (str): JSON file with a list of rows, or ``.jsonl`` with a
            row in each line.
        data_prefix (dict): ``dict(img=FOLDER)``. Defaults to
            ``dict(img='')``, ``data_root`` itself.
        on_error (str): What becomes of rows that are no conversations, have
            no answer or whose images are missing. ``'error'``: they are named
            before the training begins. ``'skip'``: they are reported and left
            out. For images that cannot be decoded see
            :class:`~transmamba_mm.datasets.skipping.SkipsUnreadable`.
            Defaults to ``'error'``.
        **kwargs: Further arguments of MMEngine's ``BaseDataset``.

    Raises:
        ValueError: If the file is no list of rows, no row is left, or with
            ``'error'`` one cannot be used.
    """

    def __init__(
        self,
        ann_file: str,
        data_prefix: Optional[dict] = None,
        on_error: str = 'error',
        **kwargs: Any,
    ) -> None:
        super().__init__(
            ann_file=ann_file,
            data_prefix=dict(data_prefix or dict(img='')),
            on_error=on_error,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Returns one dict per conversation."""
        rows = (
            (_name(number, row), (number, row))
            for number, row in enumerate(read_rows(self.ann_file), 1)
        )
        return usable_samples(
            rows,
            lambda each: self._sample(*each),
            self.ann_file,
            self.on_error,
        )

    def _sample(self, number: int, row: Any) -> dict:
        """What a row holds; ValueError with the reason if it is broken."""
        if not isinstance(row, dict):
            raise ValueError('it is no JSON object')
        images = row.get('image') or []
        images = images if isinstance(images, list) else [images]
        if not all(isinstance(name, str) for name in images):
            raise ValueError(f'image is no path: {row["image"]!r}')
        turns = _turns(row.get('conversations'), self.test_mode)
        place_images(turns, len(images))
        folder = self.data_prefix['img']
        paths = [existing(osp.join(folder, name)) for name in images]
        name = row.get('id', number)
        return dict(id=name, img_paths=paths, turns=turns)


def _name(number: int, row: Any) -> str:
    known = isinstance(row, dict) and 'id' in row
    return f'row {number} (id {row["id"]!r})' if known else f'row {number}'


def _turns(said: Any, open_end: bool) -> list[Turn]:
    """Questions with their answers.

    Args:
        said (Any): ``conversations`` of a row.
        open_end (bool): Whether the last question may lack its answer.
    """
    try:
        said = [(each['from'], each['value']) for each in said]
    except (TypeError, KeyError):
        raise ValueError(
            "conversations is no list of objects with 'from' and 'value'"
        ) from None
    if said and said[0][0] == 'gpt':
        said = said[1:]
    for i, (who, text) in enumerate(said):
        wanted = ('human', 'gpt')[i % 2]
        if who != wanted or not isinstance(text, str):
            raise ValueError(
                f'a text from {wanted!r} is due where {text!r} is from {who!r}'
            )
        if wanted == 'gpt' and not text.strip():
            raise ValueError(f'the answer to {said[i - 1][1]!r} is empty')
    texts: list[Optional[str]] = [text for _, text in said]
    if len(texts) % 2:
        texts = [*texts, None] if open_end else texts[:-1]
    if not texts:
        raise ValueError('there is no answer')
    return list(zip(texts[::2], texts[1::2]))
