# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Writes what a grid has shown, from the results of its cells alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import matplotlib as mpl
from matplotlib.figure import Figure

from .figures import AXES, draw_results, draw_similarity
from .grid import Grid
from .leaderboard import make_leaderboard
from .results import (
    Digests,
    read_choices,
    read_results,
    write_json,
    write_text,
)
from .tables import as_markdown, as_page, as_text


def write_report(
    grid: Grid, out_dir: Path, digests: Optional[Digests] = None
) -> dict[str, Any]:
    """Writes what the finished cells say, and prints the table.

    Beside the cells' folders come ``leaderboard.json``, the same as Markdown
    and as a web page, ``results.json``, all that was measured,
    ``accuracy.png`` of all contestants, and ``similarity.png`` of the first
    run with similarities.

    Args:
        grid (Grid): What was to be run.
        out_dir (Path): Parent of the cells' folders.
        digests (Mapping[str, str | None], optional): See
            :func:`~transmamba_mm.arena.results.read_results`. Defaults to
            None.

    Returns:
        dict: See :func:`~transmamba_mm.arena.leaderboard.make_leaderboard`.
    """
    results = read_results(grid, out_dir, digests)
    board = make_leaderboard(
        grid, results, read_choices(grid, out_dir, digests)
    )
    write_json(out_dir / 'results.json', [vars(result) for result in results])
    write_json(out_dir / 'leaderboard.json', board)
    write_text(out_dir / 'leaderboard.md', as_markdown(board))
    # Names in the drawing that do not change from one report to the next.
    with mpl.rc_context({'svg.hashsalt': grid.title}):
        page = as_page(board, _figures(board))
    write_text(out_dir / 'leaderboard.html', page)
    draw_results(board, list(board['contestants'])).savefig(
        out_dir / 'accuracy.png', dpi=150
    )
    distilled = [result for result in results if result.similarity]
    if distilled:
        figure = draw_similarity(distilled[0])
        figure.savefig(out_dir / 'similarity.png', dpi=150)
    print(f'\n{as_text(board)}\nfigures and data: {out_dir}', flush=True)
    return board


def _figures(board: Mapping[str, Any]) -> list[Figure]:
    """One for each variant, against all that was measured."""
    rows = board['contestants']
    axes = [
        axis
        for axis in AXES
        if axis == 'epoch'
        or any(row['images'] is not None for row in rows.values())
    ]
    variants = dict.fromkeys(row['variant'] for row in rows.values())
    return [
        draw_results(
            board,
            [n for n, row in rows.items() if row['variant'] == variant],
            axes,
        )
        for variant in variants
    ]
