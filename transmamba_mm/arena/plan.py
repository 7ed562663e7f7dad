# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The config of each cell, its digest, and where what it leaves lies.

A cell's folder, named by its key, holds the result, what the run printed and
the work directory. The latter is named by the digest of the config, so that
nothing continues what another config began.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config

from transmamba_mm.checkpoints import find_latest_checkpoint
from transmamba_mm.utils.cli import RUNNER_KEYS, check_config_keys, settings_of

from .grid import Cell, Grid
from .results import choose, read_result

# Parts of a config that no result depends on, nor do the variables that it
# may hold beside what the Runner reads.
_IDLE_KEYS = {
    *('experiment_name', 'log_level', 'log_processor', 'work_dir'),
    *('vis_backends', 'visualizer', 'test_cfg', 'test_dataloader'),
    *('test_evaluator', 'tta_model', 'tta_pipeline'),
}
_IDLE_HOOKS = {
    *('timer', 'logger', 'checkpoint', 'visualization', 'bare_file'),
    *('finite', 'precheck', 'distill_monitor', 'captions_seen'),
}


@dataclass(frozen=True, eq=False)
class Job:
    """A cell with its config.

    Attributes:
        grid (Grid): What it is part of.
        cell (Cell): What is run.
        base (Config): Its config, but for what other cells give it.
        folder (Path): The cell's folder.
        needs (Mapping[str, Job]): See :meth:`Grid.needs`.
        searches (Sequence[Job]): See :meth:`Grid.searches`.
    """

    grid: Grid
    cell: Cell
    base: Config
    folder: Path
    needs: Mapping[str, 'Job']
    searches: Sequence['Job']

    @property
    def before(self) -> set['Job']:
        """set[Job]: Those that must be finished before it starts."""
        return {*self.needs.values(), *self.searches}

    @property
    def is_settled(self) -> bool:
        """bool: Whether its config is known, with the chosen value."""
        return all(each.is_finished() for each in self.searches) and all(
            each.is_settled for each in self.needs.values()
        )

    @cached_property
    def value(self) -> Optional[float]:
        """float, optional: Of the search: tried, or chosen if settled."""
        if not self.searches:
            return self.cell.value
        found = [(s.value, read_result(s.folder).final) for s in self.searches]
        return choose(found).value

    @cached_property
    def cfg(self) -> Config:
        """Config: Its config once it is settled, without paths."""
        cfg = deepcopy(self.base)
        if self.value is not None:
            cfg.merge_from_dict({self.grid.search.key: self.value})
        # In place of paths, which differ between machines.
        given = {key: job.digest for key, job in self.needs.items()}
        cfg.merge_from_dict(given)
        return cfg

    @cached_property
    def digest(self) -> str:
        """str: Of what decides the result, once it is settled.

        That is the config, without what only watches a run or is not read,
        and those of the cells that it needs.
        """
        content = {
            key: value
            for key, value in self.cfg.to_dict().items()
            if key in RUNNER_KEYS - _IDLE_KEYS
        }
        hooks = content.get('default_hooks', {})
        content['default_hooks'] = {
            key: value
            for key, value in hooks.items()
            if key not in _IDLE_HOOKS
        }
        text = json.dumps(content, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def work_dir(self) -> Path:
        """Path: Where checkpoints and logs go."""
        return self.folder / self.digest[:8]

    @property
    def console(self) -> Path:
        """Path: What the run prints."""
        return self.folder / 'console.log'

    def checkpoint(self) -> Optional[str]:
        """The newest checkpoint, if there is one."""
        return find_latest_checkpoint(str(self.work_dir))

    def is_finished(self) -> bool:
        """Whether there is a result of this very config."""
        result = read_result(self.folder)
        return (
            result is not None
            and self.is_settled
            and result.digest == self.digest
            and result.metric in (None, self.grid.metric)
        )


def plan_jobs(grid: Grid, out_dir: Path) -> list[Job]:
    """Resolves the configs of all cells, each after those it waits for.

    Raises:
        ValueError: If a key has no place in a config.
    """
    jobs: dict[str, Job] = {}
    read = cache(Config.fromfile)
    for cell in grid.cells():
        needs = {k: jobs[other.key] for k, other in grid.needs(cell).items()}
        searches = [jobs[other.key] for other in grid.searches(cell)]
        cfg = deepcopy(read(cell.contestant.config))
        sources = [grid.options, cell.contestant.options]
        keys = [*grid.seed_keys, *needs]
        if cell.value is not None:
            sources.append(grid.search.options)
            keys.append(grid.search.key)
        options = [*chain.from_iterable(each.items() for each in sources)]
        for each in (*(key for key, _ in options), *keys):
            _check_key(cfg, each, cell)
        # One by one: of 'a.b' and 'a' in one call only one counts. Merging
        # takes `_delete_` out of what it merges.
        for key, value in options:
            cfg.merge_from_dict({key: deepcopy(value)})
        check_config_keys(settings_of(cfg))
        if cfg.get('val_dataloader') is None:
            raise ValueError(
                f'{cell.key}: {cell.contestant.config} has no val_dataloader, '
                f'which {grid.metric} would be measured on'
            )
        cfg.merge_from_dict(dict.fromkeys(grid.seed_keys, cell.seed))
        folder = out_dir / cell.key
        jobs[cell.key] = Job(grid, cell, cfg, folder, needs, searches)
    return list(jobs.values())


def jobs_of(jobs: Sequence[Job], patterns: Sequence[str]) -> list[Job]:
    """Those of some contestants, and what they wait for.

    Args:
        jobs (Sequence[Job]): All of a grid.
        patterns (Sequence[str]): Names of contestants, with the wildcards of
            a shell.

    Raises:
        ValueError: If a pattern fits no contestant.
    """
    names = {job.cell.contestant.name for job in jobs}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f'no contestant {pattern!r}; there are {sorted(names)}'
            )
    chosen: set[Job] = set()
    # From the end, as each job comes after those it waits for.
    for job in reversed(jobs):
        name = job.cell.contestant.name
        if job in chosen or any(fnmatchcase(name, p) for p in patterns):
            chosen |= {job} | job.before
    return [job for job in jobs if job in chosen]


def digests_of(jobs: Sequence[Job]) -> dict[str, Optional[str]]:
    """Of each cell's config, by its key; None where it is not settled."""
    return {
        job.cell.key: job.digest if job.is_settled else None for job in jobs
    }


def _check_key(cfg: Config, key: str, cell: Cell) -> None:
    """Complains of a dotted key whose parent is not in the config."""
    node: Any = cfg
    for part in key.split('.')[:-1]:
        known = isinstance(node, (list, tuple)) and part.isdigit()
        try:
            node = node[int(part) if known else part]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f'{cell.key}: the config has no {part!r} for {key!r}; see '
                f'{cell.contestant.config}'
            ) from error
