# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What a finished cell leaves: one file, complete or not there."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, Optional

from transmamba_mm.engine.checkpoint import AtomicLocalBackend

from .grid import Cell, Grid

RESULT_FILE = 'result.json'
Digests = Mapping[str, Optional[str]]
_SIMILARITY = 'loss_transmamba/similarities/'


@dataclass(frozen=True)
class Result:
    """What one training run measured.

    Attributes:
        name (str): The contestant's.
        seed (int): Seed of the run.
        digest (str): Of the config that was trained.
        accuracy (list[tuple[int, float]]): (epoch, the grid's metric), top-1
            in percent if it names no other.
        similarity (dict[str, list[tuple[int, float]]]): For each
            ``direction/layer``, (iteration, cosine similarity).
        value (float, optional): Of the grid's search.
        costs (list[dict]): One for each epoch, summed up since the start:
            ``epoch``, ``images`` seen, ``teacher_images``, those that the
            teacher saw, ``seconds`` and ``cpu_seconds`` of the training
            without validation, and with codecarbon ``energy_kwh`` and
            ``co2_kg``. Empty in results of earlier versions.
        device (str): ``'cpu'`` or the GPU's name; empty as well.
        metric (str, optional): What was measured; None as well.
    """

    name: str
    seed: int
    digest: str
    accuracy: list
    similarity: dict
    value: Optional[float] = None
    costs: list = field(default_factory=list)
    device: str = ''
    metric: Optional[str] = None

    @property
    def final(self) -> float:
        """float: The metric after the last epoch."""
        return self.accuracy[-1][1]


def write_json(path: Path, content: Any) -> None:
    """Writes a file, of which a kill leaves the old or the new content."""
    # Such as ranges, as lists.
    write_text(path, json.dumps(content, default=list))


def write_text(path: Path, content: str) -> None:
    """Writes a file, all or nothing."""
    AtomicLocalBackend().put(content.encode(), path)


def read_result(folder: Path) -> Optional[Result]:
    """The result in a cell's folder; None if it is not finished.

    Raises:
        ValueError: If the file is not a result.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        result = Result(**json.loads(path.read_text()))
        float(result.final)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f'{path} is no result of the arena ({error}): delete it, and its '
            'cell runs again'
        ) from error
    return result


class Choice(NamedTuple):
    """What a search found.

    Attributes:
        value (float): The best one, of equal ones the first.
        scores (list[tuple[float, float]]): Each value and its mean on the
            held-out data.
    """

    value: float
    scores: list[tuple[float, float]]

    @property
    def at_edge(self) -> bool:
        """bool: Whether a better value may lie beyond those tried."""
        tried = [value for value, _ in self.scores]
        return self.value in (min(tried), max(tried))


def choose(found: Iterable[tuple[float, float]]) -> Choice:
    """Chooses the value with the best mean.

    Args:
        found (Iterable[tuple[float, float]]): A value and what a run with
            it measured, NaN if it diverged.
    """
    by_value: dict[float, list[float]] = {}
    for value, score in found:
        by_value.setdefault(value, []).append(score)
    scores = [(value, mean(each)) for value, each in by_value.items()]
    usable = [pair for pair in scores if not isnan(pair[1])] or scores
    return Choice(max(usable, key=lambda pair: pair[1])[0], scores)


def read_choices(
    grid: Grid, out_dir: Path, digests: Optional[Digests] = None
) -> dict[str, Choice]:
    """What the finished searches chose, by contestant.

    Args:
        grid (Grid): What was to be run.
        out_dir (Path): Parent of the cells' folders.
        digests (Mapping, optional): See :func:`read_results`.
    """
    choices = {}
    for contestant in grid.contestants:
        cells = grid.search_cells(contestant)
        found = _read(grid, cells, out_dir, digests)
        if cells and len(found) == len(cells):
            choices[contestant.name] = choose(
                (result.value, result.final) for result in found
            )
    return choices


def read_results(
    grid: Grid, out_dir: Path, digests: Optional[Digests] = None
) -> list[Result]:
    """The results that are compared, by contestant, then by seed.

    Args:
        grid (Grid): What was to be run.
        out_dir (Path): Parent of the cells' folders.
        digests (Mapping[str, str | None], optional): Of the config of each
            cell, by its key. A result of another config, or with another
            value than the search chose, is left out, which is printed.
            Defaults to None: results of all configs count.
    """
    choices = read_choices(grid, out_dir, digests)
    results = []
    for contestant in grid.contestants:
        cells = grid.cells_of(contestant)
        found = _read(grid, cells, out_dir, digests)
        if grid.search_cells(contestant):
            choice = choices.get(contestant.name)
            found = [r for r in found if choice and r.value == choice.value]
        results += found
    return results


def _read(
    grid: Grid,
    cells: Sequence[Cell],
    out_dir: Path,
    digests: Optional[Digests],
) -> list[Result]:
    results = []
    for cell in cells:
        result = read_result(out_dir / cell.key)
        if result is None:
            continue
        if digests is not None and result.digest != digests[cell.key]:
            print(f'{cell.key}: left out, its config has changed since')
        elif result.metric not in (None, grid.metric):
            print(f'{cell.key}: left out, it measured {result.metric}')
        else:
            results.append(result)
    return results


def read_scalars(work_dir: Path) -> dict[str, list[tuple[int, Any]]]:
    """All that a run's logs hold, by name: (step, value), steps ascending.

    A resumed run has several logs; where two hold a step, the later one
    counts.
    """
    curves: dict[str, dict[int, Any]] = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            if not line.endswith('}'):
                continue  # cut off when the machine stopped
            entry = json.loads(line)
            for key in entry.keys() - {'step'}:
                curves.setdefault(key, {})[entry['step']] = entry[key]
    return {key: sorted(curve.items()) for key, curve in curves.items()}


def read_curves(work_dir: Path, metric: str) -> dict[str, Any]:
    """Accuracy and similarity, as of :class:`Result`, from a run's logs."""
    curves = read_scalars(work_dir)
    return dict(
        accuracy=curves.get(metric, []),
        similarity={
            key.removeprefix(_SIMILARITY): curve
            for key, curve in curves.items()
            if key.startswith(_SIMILARITY)
        },
    )
