# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What a finished cell leaves: one file, complete or not there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from transmamba_mm.engine.hooks import AtomicLocalBackend

from .grid import Grid

RESULT_FILE = 'result.json'
_ACCURACY = 'accuracy/top1'
_SIMILARITY = 'loss_transmamba/similarities/'


@dataclass(frozen=True)
class Result:
    """What one training run measured.

    Attributes:
        name (str): The contestant's.
        seed (int): Seed of the run.
        digest (str): Of the config that was trained.
        accuracy (list[tuple[int, float]]): (epoch, top-1 in percent).
        similarity (dict[str, list[tuple[int, float]]]): For each
            ``direction/layer``, (iteration, cosine similarity).
    """

    name: str
    seed: int
    digest: str
    accuracy: list
    similarity: dict

    @property
    def final(self) -> float:
        """float: Top-1 after the last epoch, in percent."""
        return self.accuracy[-1][1]


def write_json(path: Path, content: Any) -> None:
    """Writes a file, of which a kill leaves the old or the new content."""
    AtomicLocalBackend().put(json.dumps(content).encode(), path)


def read_result(folder: Path) -> Optional[Result]:
    """The result in a cell's folder; None if it is not finished."""
    path = folder / RESULT_FILE
    return Result(**json.loads(path.read_text())) if path.exists() else None


def read_results(
    grid: Grid, out_dir: Path, digests: Optional[Mapping[str, str]] = None
) -> list[Result]:
    """The results that there are, by contestant, then by seed.

    Args:
        grid (Grid): What was to be run.
        out_dir (Path): Parent of the cells' folders.
        digests (Mapping[str, str], optional): Of the config of each cell,
            by its key. A result of another config is left out, which is
            printed. Defaults to None: all results count.
    """
    cells = [c for one in grid.contestants for c in grid.cells_of(one)]
    results = []
    for cell in cells:
        result = read_result(out_dir / cell.key)
        if result is None:
            continue
        if digests is None or result.digest == digests[cell.key]:
            results.append(result)
        else:
            print(f'{cell.key}: left out, its config has changed since')
    return results


def read_curves(work_dir: Path) -> dict[str, Any]:
    """Accuracy and similarity, as of :class:`Result`, from a run's logs.

    A resumed run has several; where two hold a step, the later one counts.
    """
    accuracy: dict[int, float] = {}
    similarity: dict[str, dict[int, float]] = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            if not line.endswith('}'):
                continue  # cut off when the machine stopped
            entry = json.loads(line)
            if _ACCURACY in entry:
                accuracy[entry['step']] = entry[_ACCURACY]
            for key in entry:
                if key.startswith(_SIMILARITY):
                    curve = similarity.setdefault(key[len(_SIMILARITY) :], {})
                    curve[entry['step']] = entry[key]
    return dict(
        accuracy=sorted(accuracy.items()),
        similarity={k: sorted(v.items()) for k, v in similarity.items()},
    )
