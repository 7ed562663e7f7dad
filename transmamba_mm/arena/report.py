# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tables and figures of a grid, from the results of its cells alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from matplotlib.figure import Figure

from .grid import Grid
from .results import (
    Choice,
    Digests,
    Result,
    read_choices,
    read_results,
    write_json,
)
from .statistics import CONFIDENCE, mean_and_deviation, paired_difference


def group(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Groups results by contestant, in their order."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.name, []).append(result)
    return grouped


def summarise(
    grid: Grid,
    results: Sequence[Result],
    choices: Optional[Mapping[str, Choice]] = None,
) -> dict[str, Any]:
    """Final accuracies, and differences of the pairs that share seeds.

    Args:
        grid (Grid): What was to be run.
        results (Sequence[Result]): Those that there are.
        choices (Mapping[str, Choice], optional): What searches found.

    Returns:
        dict: ``contestants`` by name, ``differences``, a list, and
        ``choices`` by name.
    """
    finals = {
        name: {run.seed: run.final for run in runs}
        for name, runs in group(results).items()
    }
    contestants, differences = {}, []
    for name, values in finals.items():
        mean, std = mean_and_deviation(list(values.values()))
        contestants[name] = dict(mean=mean, std=std, runs=len(values))
    for names in grid.pairs:
        ours, theirs = (finals.get(name, {}) for name in names)
        if ours.keys() & theirs.keys():
            found = paired_difference(ours, theirs)
            differences.append(
                dict(pair=names, text=str(found), **found._asdict())
            )
    chosen = {
        name: dict(choice._asdict(), at_edge=choice.at_edge)
        for name, choice in (choices or {}).items()
    }
    return dict(
        contestants=contestants, differences=differences, choices=chosen
    )


def table(summary: dict[str, Any]) -> str:
    """The summary to read: contestants, then differences of pairs."""
    lines = [f'{"contestant":<22}{"top-1 (%)":>14}  runs']
    for name, row in summary['contestants'].items():
        std = f'± {row["std"]:.1f}' if row['runs'] > 1 else ''
        lines.append(
            f'{name:<22}{row["mean"]:>7.1f} {std:<6}  {row["runs"]:>4}'
        )
    lines += ['', f'paired over seeds, {100 * CONFIDENCE:.0f} % interval:']
    for row in summary['differences']:
        lines.append(f'{" - ".join(row["pair"]):<44}{row["text"]}')
    lines.append('(other processors give other figures)')
    for name, row in summary['choices'].items():
        scores = ', '.join(f'{v:g}: {score:.1f}' for v, score in row['scores'])
        edge = ', AT THE EDGE of what was tried' if row['at_edge'] else ''
        lines.append(f'{name} chose {row["value"]:g} ({scores}){edge}')
    return '\n'.join(lines)


def plot_accuracy(grid: Grid, results: Sequence[Result], path: Path) -> None:
    """Draws mean accuracy over the epochs, with one standard deviation.

    A contestant that others need is a dashed line at its final accuracy.
    """
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.add_subplot()
    needed = {n for c in grid.contestants for n in c.needs.values()}
    for name, runs in group(results).items():
        label = name.replace('_', ' ')
        if name in needed:
            final = mean_and_deviation([run.final for run in runs])[0]
            axes.axhline(final, color='black', ls='--', lw=1, label=label)
            continue
        curves = [dict(run.accuracy) for run in runs]
        # A resumed run may lack the validation at which it was killed.
        epochs = sorted(set(curves[0]).intersection(*curves))
        points = [
            mean_and_deviation([curve[epoch] for curve in curves])
            for epoch in epochs
        ]
        (line,) = axes.plot(epochs, [mean for mean, _ in points], label=label)
        axes.fill_between(
            epochs,
            [mean - std for mean, std in points],
            [mean + std for mean, std in points],
            color=line.get_color(),
            alpha=0.15,
            lw=0,
        )
    axes.set(xlabel='epoch', ylabel='top-1 (%)', title=grid.title)
    axes.legend(frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)


def plot_similarity(result: Result, path: Path) -> None:
    """Draws each layer's similarity to the teacher, one panel a direction."""
    curves = result.similarity
    directions = sorted({key.split('/')[0] for key in curves})
    figure = Figure(figsize=(3.2 * len(directions), 3.2), layout='constrained')
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    for axes, direction in zip(panels, directions):
        for key in sorted(curves):
            if key.split('/')[0] == direction:
                steps, values = zip(*curves[key])
                axes.plot(steps, values, label=key.split('/')[1])
        axes.set(title=direction.replace('_', ' '), xlabel='iteration')
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel('cosine to the teacher')
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def write_report(
    grid: Grid, out_dir: Path, digests: Optional[Digests] = None
) -> dict[str, Any]:
    """Writes what the finished cells say, and prints the table.

    Beside the cells' folders come ``results.json``, all that was measured,
    ``summary.json``, ``accuracy.png`` of all contestants, and
    ``similarity.png`` of the first run with similarities.

    Args:
        grid (Grid): What was to be run.
        out_dir (Path): Parent of the cells' folders.
        digests (Mapping[str, str], optional): See
            :func:`~transmamba_mm.arena.results.read_results`. Defaults to
            None.

    Returns:
        dict: See :func:`summarise`.
    """
    results = read_results(grid, out_dir, digests)
    choices = read_choices(grid, out_dir, digests)
    summary = summarise(grid, results, choices)
    write_json(out_dir / 'results.json', [vars(result) for result in results])
    write_json(out_dir / 'summary.json', summary)
    plot_accuracy(grid, results, out_dir / 'accuracy.png')
    distilled = [result for result in results if result.similarity]
    if distilled:
        plot_similarity(distilled[0], out_dir / 'similarity.png')
    print(f'\n{table(summary)}\nfigures and data: {out_dir}', flush=True)
    return summary
