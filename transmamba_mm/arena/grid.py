# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is compared: contestants, seeds, and the pairs of interest."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Optional

from mmengine.config import Config

#: The grid as it was run last, in the folder of its cells.
GRID_FILE = 'grid.json'


@dataclass(frozen=True)
class Contestant:
    """A training config that takes part.

    Attributes:
        name (str): Its name in folders, tables and figures.
        config (str): Path of the config.
        options (Mapping[str, Any]): Overrides of the config by dotted key,
            as in ``--cfg-options``.
        needs (Mapping[str, str]): Key of the config that takes the path of a
            checkpoint, to the contestant that trains it. It is the final one
            of that contestant's first seed.
        seeds (Sequence[int], optional): Seeds in place of the grid's.
        search (Sequence[float], optional): Values to choose from, in place
            of those of the grid's :class:`Search`; none if empty.
        wave (int): All cells of a wave come before those of the next.
            Defaults to 0.
        variant (str): What it shares with those it is compared to, such as
            a share of the data; its name ends with it. Defaults to ``''``.
    """

    name: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    seeds: Optional[Sequence[int]] = None
    search: Optional[Sequence[float]] = None
    wave: int = 0
    variant: str = ''


@dataclass(frozen=True)
class Search:
    """A setting that every contestant chooses for itself, on other data.

    Attributes:
        key (str): Dotted key of the config, such as a learning rate's.
        values (Sequence[float]): What is tried.
        seeds (Sequence[int]): Of the runs that choose. Best other ones than
            those of the comparison.
        options (Mapping[str, Any]): Overrides, after the contestant's own:
            what makes these runs evaluate held-out data.
    """

    key: str
    values: Sequence[float]
    seeds: Sequence[int]
    options: Mapping[str, Any]


class Cell(NamedTuple):
    """One training run: a contestant and a seed.

    ``value`` is what the search tries in this run. None: the run counts in
    the comparison, with the value that was chosen, if there is a search.
    """

    contestant: Contestant
    seed: int
    value: Optional[float] = None

    @property
    def key(self) -> str:
        """str: Unique in the grid, and the name of the cell's folder."""
        tried = '' if self.value is None else f'@{self.value:.12g}'
        return f'{self.contestant.name}{tried}_seed{self.seed}'


@dataclass(frozen=True)
class Grid:
    """Contestants times seeds.

    Attributes:
        title (str): What is measured, for the figures.
        contestants (Sequence[Contestant]): In the order of the tables; each
            may need those before it.
        seeds (Sequence[int]): Seeds of every contestant without its own.
        options (Mapping[str, Any]): Overrides of every config, before the
            contestant's own.
        pairs (Sequence[tuple[str, str]]): Names of contestants; reported is
            the first minus the second.
        references (Sequence[str]): Contestants that all others of their
            variant are compared to. Without a variant they are those of
            every variant.
        seed_keys (Sequence[str]): Keys of the config that take the seed.
            Defaults to ``('randomness.seed',)``.
        search (Search, optional): What each contestant chooses before it
            competes. Defaults to None.
        metric (str): What the evaluator calls the result, higher is better.
            Defaults to ``'accuracy/top1'``.
        paper (Mapping[str, Sequence[str]]): Names of contestants, to table
            and row of :data:`~transmamba_mm.arena.paper.TABLES`.

    Raises:
        ValueError: If a name is unfit for a folder, given twice or unknown,
            or a search has no values or seeds.
    """

    title: str
    contestants: Sequence[Contestant]
    seeds: Sequence[int]
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str]] = ()
    seed_keys: Sequence[str] = ('randomness.seed',)
    search: Optional[Search] = None
    metric: str = 'accuracy/top1'
    references: Sequence[str] = ()
    paper: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known: set[str] = set()
        for contestant in self.contestants:
            name = contestant.name
            if not re.fullmatch(r'[\w.+-]+', name) or name in known:
                raise ValueError(f'{name!r} is no folder name, or there twice')
            if unknown := set(contestant.needs.values()) - known:
                raise ValueError(f'{name!r} needs {unknown}, not before it')
            seeds = [cell.seed for cell in self.cells_of(contestant)]
            if not seeds:
                raise ValueError(f'{name!r} has no seed to run with')
            if len(set(seeds)) < len(seeds):
                raise ValueError(f'{name!r} has a seed twice: {seeds}')
            if contestant.search and self.search is None:
                raise ValueError(f'{name!r} searches, but the grid does not')
            known.add(name)
        named = [*chain.from_iterable(self.pairs), *self.paper]
        if unknown := set(named) - known:
            raise ValueError(f'{unknown} of pairs or paper do not take part')
        for name in self.references:
            if not any(name == stem(each) for each in self.contestants):
                raise ValueError(f'reference {name!r} does not take part')
        if self.search and not (self.search.values and self.search.seeds):
            raise ValueError('a search needs values and seeds')

    def cells_of(self, contestant: Contestant) -> list[Cell]:
        """The runs of one contestant that are compared."""
        own = contestant.seeds
        seeds = self.seeds if own is None else own
        return [Cell(contestant, seed) for seed in seeds]

    def search_cells(self, contestant: Contestant) -> list[Cell]:
        """The runs by which one contestant chooses."""
        if self.search is None:
            return []
        own = contestant.search
        values = self.search.values if own is None else own
        return [
            Cell(contestant, seed, value)
            for value in values
            for seed in self.search.seeds
        ]

    def cells(self) -> list[Cell]:
        """All runs, each after those that it waits for.

        Within a wave, searches come first. Then they go seed by seed, so
        that an unfinished grid already compares contestants.
        """
        ordered: dict[str, Cell] = {}

        def put(cell: Cell) -> None:
            if cell.key not in ordered:
                others = self.needs(cell).values()
                for other in (*others, *self.searches(cell)):
                    put(other)
                ordered[cell.key] = cell

        for wave in sorted({each.wave for each in self.contestants}):
            members = [c for c in self.contestants if c.wave == wave]
            searches = chain.from_iterable(map(self.search_cells, members))
            columns = map(self.cells_of, members)
            rounds = chain.from_iterable(zip_longest(*columns))
            for cell in chain(searches, filter(None, rounds)):
                put(cell)
        return list(ordered.values())

    def searches(self, cell: Cell) -> list[Cell]:
        """The runs that choose the value for a run."""
        if cell.value is not None:
            return []
        return self.search_cells(cell.contestant)

    def needs(self, cell: Cell) -> dict[str, Cell]:
        """The run whose checkpoint goes to each key of the config."""
        by_name = {c.name: c for c in self.contestants}
        return {
            key: self.cells_of(by_name[name])[0]
            for key, name in cell.contestant.needs.items()
        }


def stem(contestant: Contestant) -> str:
    """The name without the variant."""
    return contestant.name.removesuffix(f'-{contestant.variant}')


def expand(
    contestants: Iterable[Mapping[str, Any]],
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[Contestant]:
    """Multiplies contestants by axes, such as shares of the data.

    Args:
        contestants (Iterable[Mapping]): Arguments of :class:`Contestant`
            and, optionally, ``axes``, names of those that count for it.
            Defaults to all. The path of the config may hold ``{axis}`` for
            the label; what is needed is that of the same labels.
        axes (Mapping): For each name, labels to the overrides of the config
            that they stand for.

    Returns:
        list[Contestant]: One for each combination of labels.
    """
    known = {each.name for each in fields(Contestant)} | {'axes'}
    for each in contestants:
        if unknown := each.keys() - known:
            raise ValueError(
                f'a contestant has unknown {sorted(unknown)}: {each}'
            )
        if missing := {'name', 'config'} - each.keys():
            raise ValueError(f'a contestant has no {sorted(missing)}: {each}')
    own = {each['name']: each.get('axes', list(axes)) for each in contestants}
    expanded = []
    for each in contestants:
        names = own[each['name']]
        if unknown := set(names) - axes.keys():
            raise ValueError(f'{each["name"]!r} has unknown axes {unknown}')
        for labels in product(*(axes[name] for name in names)):
            chosen = dict(zip(names, labels))
            options = {}
            for name, label in chosen.items():
                options.update(axes[name][label])
            given = {k: v for k, v in each.items() if k != 'axes'}
            needs = {}
            for key, other in each.get('needs', {}).items():
                shared = [n for n in own.get(other, ()) if n in chosen]
                needs[key] = '-'.join([other, *(chosen[n] for n in shared)])
            given.update(
                name='-'.join([each['name'], *labels]),
                config=each['config'].format(**chosen),
                options={**options, **each.get('options', {})},
                needs=needs,
                variant='-'.join(labels) or each.get('variant', ''),
            )
            expanded.append(Contestant(**given))
    return expanded


def read_grid(path: str, seeds: Optional[int] = None) -> Grid:
    """Reads a grid from a config.

    Args:
        path (str): A folder in which it has run, or a config with ``title``,
            ``contestants`` (a list of the arguments of
            :class:`Contestant`), ``seeds`` and, optionally,
            ``search`` (the arguments of :class:`Search`), ``axes`` (see
            :func:`expand`) and others of :class:`Grid`.
        seeds (int, optional): How many of its seeds. Defaults to None, all.

    Returns:
        Grid: The grid.
    """
    if Path(path).is_dir():
        path = Path(path) / GRID_FILE
    cfg = Config.fromfile(path).to_dict()
    names = {each.name for each in fields(Grid)}
    if missing := {'title', 'contestants', 'seeds'} - cfg.keys():
        raise ValueError(f'{path} is no grid: it has no {sorted(missing)}')
    # A config may have variables of its own, but these are mistakes.
    for key in cfg.keys() - names - {'axes'}:
        close = get_close_matches(key, [*names, 'axes'], 1, 0.85)
        if close and not key.startswith('_'):
            raise ValueError(f'{path}: {key} does nothing: is it {close[0]}?')
    given = {key: value for key, value in cfg.items() if key in names}
    given.update(
        contestants=expand(cfg['contestants'], cfg.get('axes', {})),
        seeds=cfg['seeds'][:seeds],
        search=Search(**cfg['search']) if cfg.get('search') else None,
    )
    return Grid(**given)
