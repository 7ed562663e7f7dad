# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Plots of a leaderboard, and of one run's similarities."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from transmamba_mm.distill.gradient_share import SHARE

from .results import Result

#: What results are drawn against.
AXES = dict(epoch='epoch', images='images seen', seconds='training (s)')


def _points(board: Mapping[str, Any], name: str, axis: str) -> list[tuple]:
    """(x, mean, deviation) of a contestant, where x was measured."""
    curve = board['contestants'][name]['curve']
    if axis == 'seconds':
        at = dict(map(tuple, board['measured'][name]['seconds_by_epoch']))
        curve = [dict(each, seconds=at.get(each['epoch'])) for each in curve]
    return [
        (each[axis], each['mean'], each['std'])
        for each in curve
        if each[axis] is not None
    ]


def draw_results(
    board: Mapping[str, Any],
    names: Sequence[str],
    axes: Sequence[str] = ('epoch',),
) -> Figure:
    """Draws mean results over the training, with one standard deviation.

    A contestant that others need is a dashed line at its final result.

    Args:
        board (Mapping): See
            :func:`~transmamba_mm.arena.leaderboard.make_leaderboard`.
        names (Sequence[str]): Contestants to draw.
        axes (Sequence[str]): Of :data:`AXES`, one panel each.
    """
    figure = Figure(figsize=(1.5 + 5.5 * len(axes), 4.5), layout='constrained')
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    colors = [*colormaps['tab10'].colors, *colormaps['Dark2'].colors]
    for panel, axis in zip(panels, axes):
        for i, name in enumerate(names):
            row, label = board['contestants'][name], name.replace('_', ' ')
            if row['is_teacher']:
                panel.axhline(
                    row['mean'], color='black', ls='--', lw=1, label=label
                )
                continue
            points = _points(board, name, axis)
            color = colors[i % len(colors)]
            style = ('-', ':')[i // len(colors) % 2]
            x, mean, std = zip(*points) if points else ((), (), ())
            panel.plot(x, mean, style, color=color, label=label)
            panel.fill_between(
                x,
                [m - s for m, s in zip(mean, std)],
                [m + s for m, s in zip(mean, std)],
                color=color,
                alpha=0.15,
                lw=0,
            )
        panel.set(xlabel=AXES[axis])
        panel.spines[['top', 'right']].set_visible(False)
    known = board['metric'] == 'accuracy/top1'
    panels[0].set_ylabel('top-1 (%)' if known else board['metric'])
    figure.suptitle(board['title'])
    handles, labels = panels[0].get_legend_handles_labels()
    if len(axes) == 1 and len(names) < 8:
        panels[0].legend(frameon=False)
    else:
        figure.legend(
            handles, labels, loc='outside right center', frameon=False
        )
    return figure


def draw_curves(curves: Mapping[str, Sequence], label: str) -> Figure:
    """Draws what was logged over a training.

    Args:
        curves (Mapping[str, Sequence[tuple[int, float]]]): (iteration,
            value) by ``PANEL/LINE``, e.g. ``raster/layer00``.
        label (str): What the values are.
    """
    titles = sorted({key.split('/')[0] for key in curves})
    figure = Figure(figsize=(3.2 * len(titles), 3.2), layout='constrained')
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    lines = sorted({key.split('/')[1] for key in curves})
    colors = colormaps['viridis'].resampled(max(2, len(lines)))
    for axes, title in zip(panels, titles):
        for i, line in enumerate(lines):
            if curve := curves.get(f'{title}/{line}'):
                axes.plot(*zip(*curve), color=colors(i), label=line)
        axes.set(title=title.replace('_', ' '), xlabel='iteration')
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel(label)
    panels[0].legend(
        frameon=False, fontsize='small', ncols=1 + len(lines) // 9
    )
    return figure


def draw_similarity(result: Result) -> Figure:
    """Draws each layer's similarity to the teacher, one panel a direction."""
    return draw_curves(result.similarity, 'cosine to the teacher')


def draw_distillation(scalars: Mapping[str, Sequence]) -> dict[str, Figure]:
    """Draws all that hooks of a distillation logged.

    Args:
        scalars (Mapping): See
            :func:`~transmamba_mm.arena.results.read_scalars`.

    Returns:
        dict[str, Figure]: Of each loss what it tells of its layers and
        directions, e.g. ``loss_transmamba_similarities``, and
        ``gradient_share``.
    """
    found: dict[str, dict[str, Sequence]] = {}
    for key, curve in scalars.items():
        kind, *place = key.rsplit('/', 2)
        if len(place) == 2 and ('layer' in place[1] or kind == SHARE):
            found.setdefault(kind, {})['/'.join(place)] = curve
    return {
        kind.replace('/', '_'): draw_curves(curves, kind.split('/')[-1])
        for kind, curves in sorted(found.items())
    }
