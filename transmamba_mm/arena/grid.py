# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is compared: contestants, seeds, and the pairs of interest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, NamedTuple, Optional

from mmengine.config import Config


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
    """

    name: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    seeds: Optional[Sequence[int]] = None


class Cell(NamedTuple):
    """One training run: a contestant and a seed."""

    contestant: Contestant
    seed: int

    @property
    def key(self) -> str:
        """str: Unique in the grid, and the name of the cell's folder."""
        return f'{self.contestant.name}_seed{self.seed}'


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
        seed_keys (Sequence[str]): Keys of the config that take the seed.
            Defaults to ``('randomness.seed',)``.

    Raises:
        ValueError: If a name is unfit for a folder, given twice or unknown.
    """

    title: str
    contestants: Sequence[Contestant]
    seeds: Sequence[int]
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str]] = ()
    seed_keys: Sequence[str] = ('randomness.seed',)

    def __post_init__(self) -> None:
        known: set[str] = set()
        for contestant in self.contestants:
            name = contestant.name
            if not re.fullmatch(r'[\w.+-]+', name) or name in known:
                raise ValueError(f'{name!r} is no folder name, or there twice')
            if unknown := set(contestant.needs.values()) - known:
                raise ValueError(f'{name!r} needs {unknown}, not before it')
            if not self.cells_of(contestant):
                raise ValueError(f'{name!r} has no seed to run with')
            known.add(name)
        if unknown := set(chain.from_iterable(self.pairs)) - known:
            raise ValueError(f'pairs of {unknown}, who do not take part')

    def cells_of(self, contestant: Contestant) -> list[Cell]:
        """The runs of one contestant."""
        own = contestant.seeds
        seeds = self.seeds if own is None else own
        return [Cell(contestant, seed) for seed in seeds]

    def cells(self) -> list[Cell]:
        """All runs, each after those that it needs.

        They go seed by seed, so that an unfinished grid already compares
        contestants.
        """
        columns = map(self.cells_of, self.contestants)
        rounds = chain.from_iterable(zip_longest(*columns))
        return [cell for cell in rounds if cell is not None]

    def needs(self, cell: Cell) -> dict[str, Cell]:
        """The run whose checkpoint goes to each key of the config."""
        by_name = {c.name: c for c in self.contestants}
        return {
            key: self.cells_of(by_name[name])[0]
            for key, name in cell.contestant.needs.items()
        }


def read_grid(path: str, seeds: Optional[int] = None) -> Grid:
    """Reads a grid from a config.

    Args:
        path (str): A config with ``title``, ``contestants`` (a list of the
            arguments of :class:`Contestant`), ``seeds`` and, optionally,
            ``options``, ``pairs`` and ``seed_keys``.
        seeds (int, optional): How many of its seeds. Defaults to None, all.

    Returns:
        Grid: The grid.
    """
    cfg = Config.fromfile(path).to_dict()
    fields = ('title', 'options', 'pairs', 'seed_keys')
    return Grid(
        contestants=[Contestant(**each) for each in cfg['contestants']],
        seeds=cfg['seeds'][:seeds],
        **{key: cfg[key] for key in fields if key in cfg},
    )
