# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Rows of annotation files: read, checked, and named where they are broken."""

import json
import os.path as osp
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union

from .skipping import name_some, tell_skipped

_NAMES = {str: 'text', list: 'list', int: 'number', Mapping: 'JSON object'}


def read_json(path: str) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: If it is no JSON, naming the file.
    """
    with open(path, encoding='utf-8') as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"'{path}' is no JSON: {error}") from error


def read_lines(path: str) -> list:
    """What each line of a file holds; a line that is no JSON is a text."""
    with open(path, encoding='utf-8') as file:
        return [_json_or_text(line) for line in file if line.strip()]


def _json_or_text(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def read_table(path: str, name: str) -> list:
    """A list of a JSON file, by its name.

    Raises:
        ValueError: If there is none.
    """
    content = read_json(path)
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise ValueError(f"'{path}' has no list of {name}")
    return found


def read_rows(path: str) -> list:
    """Rows of a ``.jsonl`` file, or of a JSON file with a list.

    Raises:
        ValueError: If it is neither.
    """
    if path.endswith('.jsonl'):
        return read_lines(path)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"'{path}' is no list of rows")
    return rows


def field(row: Any, name: str, kind: Union[type, tuple] = str) -> Any:
    """A value of a row.

    Args:
        row (Any): The row.
        name (str): Its name.
        kind (type | tuple): What it must be. Defaults to ``str``.

    Raises:
        ValueError: If the row has no such value, or of another type.
    """
    if not isinstance(row, Mapping):
        raise ValueError('it is no JSON object')
    if name not in row:
        raise ValueError(f'it has no {name}')
    if not isinstance(row[name], kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = ' or '.join(_NAMES[each] for each in kinds)
        raise ValueError(f'{name} is no {wanted}: {row[name]!r}')
    return row[name]


def existing(path: str) -> str:
    """The path of an image.

    Raises:
        ValueError: If there is no such file.
    """
    if not osp.isfile(path):
        raise ValueError(f"image '{path}' is missing")
    return path


def usable_samples(
    rows: Iterable[tuple[str, Any]],
    sample_of: Callable[[Any], dict],
    source: str,
    on_error: str,
) -> list[dict]:
    """Samples of rows.

    Args:
        rows (Iterable[tuple[str, Any]]): Rows, and what they are called.
        sample_of (Callable): Makes a sample of a row, or raises a
            ``ValueError`` with the reason why it cannot be used.
        source (str): Where they come from.
        on_error (str): What becomes of those that cannot be used: ``'error'``
            or ``'skip'``, which leaves them out and reports them.

    Returns:
        list[dict]: At least one.

    Raises:
        ValueError: If there is none, or with ``'error'`` one row cannot be
            used.
    """
    samples, bad = [], []
    for name, row in rows:
        try:
            samples.append(sample_of(row))
        except ValueError as error:
            bad.append(f'{name}: {error}')
    total = len(samples) + len(bad)
    if bad and on_error == 'error':
        raise ValueError(
            f"{len(bad)} of {total} rows of '{source}' cannot be used: "
            f"{name_some(bad)}. Mend them, or set on_error='skip'"
        )
    if bad:
        tell_skipped(bad, total, f"rows of '{source}' are broken")
    if not samples:
        raise ValueError(f"'{source}' has no row to use")
    return samples
