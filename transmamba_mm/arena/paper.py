# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Results that the paper prints, to stand beside ours.

TransMamba, arXiv 2502.15130 v1: top-1 in percent after 300 epochs, single
runs. Its text gives neither seeds nor deviations.
"""

from collections.abc import Mapping
from typing import Any

from .grid import Grid

_STUDENTS = {
    # CIFAR-100, ImageNet-100, ImageNet-1k: alone, and with TransMamba.
    'PMamba-T': ((78.55, 84.48, 68.28), (81.20, 87.10, 69.04)),
    'PMamba-S': ((81.15, 85.82, 79.79), (82.28, 87.20, 80.79)),
    'PMamba-B': ((82.27, 86.60, 80.06), (82.79, 89.30, 81.29)),
    'VMamba': ((82.88, 86.12, 82.20), (83.78, 89.30, 82.90)),
    'ViM-T': ((69.95, 76.10, None), (76.56, 81.22, None)),
    'ViM-S': ((73.87, 84.54, 80.5), (78.37, 85.18, 81.01)),
}
_TEACHERS = {
    'DeiT-T': (88.17, 87.62, 74.5),
    'DeiT-S': (88.20, 87.84, 81.2),
    'DeiT-B': (88.44, 88.12, 83.4),
}
_DATA = ('CIFAR-100', 'ImageNet-100', 'ImageNet-1k')

#: Table, then row, to top-1 in percent.
TABLES: dict[str, dict[str, float]] = {
    f'Table 2, {data}': {
        **{name: values[i] for name, values in _TEACHERS.items()},
        **{name: each[0][i] for name, each in _STUDENTS.items()},
        **{
            f'{name} + TransMamba': each[1][i]
            for name, each in _STUDENTS.items()
        },
    }
    for i, data in enumerate(_DATA)
}
# PMamba-T on ImageNet-100. What Table 2 prints is Table 6's row of 75 %.
TABLES['Table 5'] = {
    'feature distillation': 78.56,
    'logits': 84.36,
    'TransMamba': 87.10,
}
TABLES['Table 6'] = {
    '25 %': 83.20,
    '50 %': 87.02,
    '75 %': 87.10,
    '100 %': 86.96,
}


def beside_paper(grid: Grid, board: Mapping[str, Any]) -> str:
    """Our results and those of the paper, line by line.

    Args:
        grid (Grid): Its ``paper`` says which belong together.
        board (Mapping): See
            :func:`~transmamba_mm.arena.leaderboard.make_leaderboard`.

    Raises:
        ValueError: If the grid names none, or one that does not exist.
    """
    if not grid.paper:
        raise ValueError(
            'the grid mirrors no table of the paper: its `paper` maps names '
            f'of contestants to a table and a row; tables: {", ".join(TABLES)}'
        )
    lines = [f'{"contestant":<34}{"ours":>14}{"paper":>8}  source']
    for name, (table, row) in grid.paper.items():
        theirs = TABLES.get(table, {}).get(row)
        if theirs is None:
            raise ValueError(f'the paper has no {row!r} in {table!r}')
        ours = board['contestants'].get(name)
        text = 'not run'
        if ours is not None:
            std = f' ± {ours["std"]:.1f}' if ours['runs'] > 1 else ''
            text = f'{ours["mean"]:.1f}{std}'
        lines.append(f'{name:<34}{text:>14}{theirs:>8.2f}  {table}: {row}')
    lines.append('(the paper: one run of 300 epochs each, 224 pixels)')
    return '\n'.join(lines)
