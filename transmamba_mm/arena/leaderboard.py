# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What a grid has shown: the content of ``leaderboard.json``.

``docs/guides/arena.md`` describes the file. All but its part ``measured``
depends on configs and seeds alone, on one kind of processor.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from statistics import mean
from typing import Any, Optional

from .grid import Contestant, Grid, stem
from .results import Choice, Result
from .statistics import mean_and_deviation, paired_difference

FORMAT = 1
MEASURED = ('seconds', 'cpu_seconds', 'energy_kwh', 'co2_kg')


def group(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Groups results by contestant, in their order."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.name, []).append(result)
    return grouped


def make_leaderboard(
    grid: Grid,
    results: Sequence[Result],
    choices: Optional[Mapping[str, Choice]] = None,
) -> dict[str, Any]:
    """Compares the contestants.

    Args:
        grid (Grid): What was to be run.
        results (Sequence[Result]): Those that there are.
        choices (Mapping[str, Choice], optional): What searches found.

    Returns:
        dict: See the guide.
    """
    runs = group(results)
    teachers = {n for c in grid.contestants for n in c.needs.values()}
    rows, measured = {}, {}
    for contestant in grid.contestants:
        name = contestant.name
        if name not in runs:
            continue
        found = runs[name]
        average, std = mean_and_deviation([run.final for run in found])
        choice = (choices or {}).get(name)
        rows[name] = dict(
            mean=average,
            std=std,
            runs=len(found),
            seeds={str(run.seed): run.final for run in found},
            is_teacher=name in teachers,
            variant=contestant.variant,
            chosen=choice and _chosen(choice),
            images=_average(_last(found, 'images')),
            teacher_images=_average(_last(found, 'teacher_images')),
            curve=_curve(found),
            against={}
            if name in teachers
            else {
                other: _against(found, runs[at])
                for other, at in _references(grid, contestant).items()
                if at in runs
            },
        )
        measured[name] = dict(
            devices=sorted({run.device for run in found if run.device}),
            **{key: _average(_last(found, key)) for key in MEASURED},
            seconds_by_epoch=[
                [epoch, value] for epoch, value in _costs(found, 'seconds')
            ],
        )
    differences = []
    for ours, theirs in grid.pairs:
        if ours in runs and theirs in runs:
            difference = _difference(runs[ours], runs[theirs])
            if difference:
                differences.append(dict(pair=[ours, theirs], **difference))
    return dict(
        format=FORMAT,
        title=grid.title,
        metric=grid.metric,
        references=list(grid.references),
        contestants=rows,
        differences=differences,
        measured=measured,
    )


def _chosen(choice: Choice) -> dict[str, Any]:
    """What a search found; None in place of NaN, which JSON lacks."""
    scores = [(v, None if isnan(x) else x) for v, x in choice.scores]
    return dict(value=choice.value, scores=scores, at_edge=choice.at_edge)


def _references(grid: Grid, contestant: Contestant) -> dict[str, str]:
    """Each reference, and its name in the variant of a contestant."""
    found = {}
    for other in grid.contestants:
        name = stem(other)
        if (
            name in grid.references
            and other.variant in ('', contestant.variant)
            and other.name != contestant.name
        ):
            found[name] = other.name
    return found


def _difference(
    ours: Sequence[Result], theirs: Sequence[Result]
) -> Optional[dict[str, Any]]:
    """Of final results with the same seed; None without such."""
    finals = [{run.seed: run.final for run in runs} for runs in (ours, theirs)]
    if not finals[0].keys() & finals[1].keys():
        return None
    found = paired_difference(*finals)
    return dict(found._asdict(), text=str(found))


def _against(
    ours: Sequence[Result], theirs: Sequence[Result]
) -> dict[str, Any]:
    """How a contestant compares to a reference, seed by seed.

    ``reached`` counts the seeds with a validation not below the reference's
    final result; ``epochs`` and ``images`` are up to the first such, on
    average, if there is one in all seeds.
    """
    targets = {run.seed: run.final for run in theirs}
    paired = [run for run in ours if run.seed in targets]
    epochs, images = [], []
    for run in paired:
        seen = {row['epoch']: row['images'] for row in run.costs}
        for epoch, value in run.accuracy:
            if value >= targets[run.seed]:
                epochs.append(epoch)
                images.append(seen.get(epoch))
                break
    everywhere = paired and len(epochs) == len(paired)
    return dict(
        difference=_difference(ours, theirs),
        reached=len(epochs),
        epochs=mean(epochs) if everywhere else None,
        images=_average(images) if everywhere else None,
    )


def _average(values: Iterable[Optional[float]]) -> Optional[float]:
    """The mean, if no value is missing."""
    values = list(values)
    return None if None in values or not values else mean(values)


def _last(runs: Sequence[Result], key: str) -> list[Optional[float]]:
    """A sum of each run; None where it was not measured."""
    return [run.costs[-1].get(key) if run.costs else None for run in runs]


def _costs(runs: Sequence[Result], key: str) -> list[tuple[int, float]]:
    """(epoch, mean of a sum over the runs) where all runs have it."""
    found = [{row['epoch']: row[key] for row in run.costs} for run in runs]
    shared = set(found[0]).intersection(*found)
    return [(e, mean(each[e] for each in found)) for e in sorted(shared)]


def _curve(runs: Sequence[Result]) -> list[dict[str, Any]]:
    """Mean and deviation at each epoch that all runs have validated."""
    curves = [dict(map(tuple, run.accuracy)) for run in runs]
    images = dict(_costs(runs, 'images'))
    points = []
    for epoch in sorted(set(curves[0]).intersection(*curves)):
        average, std = mean_and_deviation([curve[epoch] for curve in curves])
        seen = images.get(epoch)
        points.append(dict(epoch=epoch, images=seen, mean=average, std=std))
    return points
