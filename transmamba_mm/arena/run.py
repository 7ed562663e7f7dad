# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Runs the cells of a grid, several at a time, and continues them.

A cell's folder, named by its key, holds the result, what the run printed and
the work directory. The latter is named by the digest of the config, so that
nothing continues what another config began.
"""

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Optional

import torch
from filelock import FileLock, Timeout
from joblib import cpu_count
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from transmamba_mm.utils.cli import check_config_keys

from .grid import Cell, Grid
from .results import RESULT_FILE, Result, read_curves, read_result, write_json


@dataclass(frozen=True, eq=False)
class Job:
    """A cell with its config.

    Attributes:
        cell (Cell): What is run.
        cfg (Config): Its config, without paths of this machine.
        digest (str): Of the config and of those that it needs.
        folder (Path): The cell's folder.
        needs (Mapping[str, Job]): See :meth:`Grid.needs`.
    """

    cell: Cell
    cfg: Config
    digest: str
    folder: Path
    needs: Mapping[str, 'Job']

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
        pointer = self.work_dir / 'last_checkpoint'
        if not pointer.exists():
            return None
        # The folder may have moved since the path was written.
        path = self.work_dir / Path(pointer.read_text().strip()).name
        return str(path) if path.exists() else None

    def is_finished(self) -> bool:
        """Whether there is a result of this very config."""
        result = read_result(self.folder)
        return result is not None and result.digest == self.digest


def plan_jobs(grid: Grid, out_dir: Path) -> list[Job]:
    """Resolves the configs of all cells, each after those that it needs."""
    jobs: dict[str, Job] = {}
    for cell in grid.cells():
        needs = {k: jobs[other.key] for k, other in grid.needs(cell).items()}
        cfg = Config.fromfile(cell.contestant.config)
        # Merging takes `_delete_` out of what it merges.
        options = deepcopy({**grid.options, **cell.contestant.options})
        for key in (*options, *grid.seed_keys, *needs):
            _check_key(cfg, key, cell)
        cfg.merge_from_dict(options)
        check_config_keys(cfg)
        cfg.merge_from_dict(dict.fromkeys(grid.seed_keys, cell.seed))
        # In place of paths, which differ between machines.
        cfg.merge_from_dict({key: job.digest for key, job in needs.items()})
        text = json.dumps(cfg.to_dict(), sort_keys=True, default=repr)
        digest = hashlib.sha256(text.encode()).hexdigest()
        jobs[cell.key] = Job(cell, cfg, digest, out_dir / cell.key, needs)
    return list(jobs.values())


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


class ReportEpoch(Hook):
    """Tells about each finished epoch, once its checkpoint is written.

    Args:
        report (Callable): Takes the epoch and the number of epochs.
    """

    priority = 'LOWEST'

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def after_train_epoch(self, runner: Runner) -> None:
        """Reports the epoch."""
        self.report(runner.epoch + 1, runner.max_epochs)


def train_config(cfg: Config, report: Callable) -> dict[str, Any]:
    """Trains a config in this process.

    Args:
        cfg (Config): The config.
        report (Callable): See :class:`ReportEpoch`.

    Returns:
        dict: See :func:`~transmamba_mm.arena.results.read_curves`.
    """
    runner = Runner.from_cfg(cfg)
    runner.register_hook(ReportEpoch(report))
    runner.train()
    curves = read_curves(Path(cfg.work_dir))
    if runner.epoch not in dict(curves['accuracy']):
        # Interrupted after the last checkpoint, before its validation.
        runner.val_loop.run()
        curves = read_curves(Path(cfg.work_dir))
    if not curves['accuracy']:
        raise ValueError(
            'nothing was measured as accuracy/top1: the arena needs '
            "val_evaluator=dict(type='Accuracy', topk=(1,))"
        )
    return curves


def _work(job: Job, cfg: Config, train: Callable, channel: Any) -> None:
    """Runs a job in this process; what it prints goes to a file."""
    with open(job.console, 'a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    # Reading the file has imported them, but in another process.
    import_modules_from_strings(**cfg.get('custom_imports', dict(imports=[])))
    # Sending fails once the main process is gone, which ends the run: it
    # must not go on beside the next attempt.
    measured = train(cfg, lambda *epochs: channel.send(epochs))
    name, seed = job.cell.contestant.name, job.cell.seed
    result = Result(name, seed, job.digest, **measured)
    write_json(job.folder / RESULT_FILE, vars(result))


def _start(context: Any, job: Job, train: Callable) -> tuple[Any, Any]:
    """Starts the process of a job; returns it and what it sends."""
    cfg = deepcopy(job.cfg)
    cfg.merge_from_dict({k: n.checkpoint() for k, n in job.needs.items()})
    cfg.work_dir = str(job.work_dir)
    if job.checkpoint() is not None:
        cfg.resume, cfg.load_from = True, job.checkpoint()
    job.work_dir.mkdir(parents=True, exist_ok=True)
    job.console.write_text('')
    reports, channel = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, cfg, train, channel))
    process.start()
    channel.close()
    return process, reports


def _process_context() -> Any:
    """Makes processes as forks of a server that has imported everything.

    Not with a GPU: MMEngine's import touches CUDA, which forks cannot use
    after that.
    """
    if sys.platform != 'linux' or get_device() != 'cpu':
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    return context


class _Progress:
    """Prints finished epochs with an estimate of the remaining time."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.total = sum(j.cfg.train_cfg.get('max_epochs', 1) for j in jobs)
        self.done, self.seen = 0, set()
        self.start, self.last = time.monotonic(), 0.0

    def update(self, job: Job, epoch: int, epochs: int) -> None:
        """Counts one epoch; prints at most every two seconds."""
        if job not in self.seen:
            self.seen.add(job)
            self.total -= epoch - 1  # of an earlier attempt
        self.done += 1
        now = time.monotonic()
        if epoch < epochs and now - self.last < 2:
            return
        self.last = now
        elapsed = now - self.start
        left = elapsed * (self.total - self.done) / self.done
        print(
            f'[{100 * self.done // self.total:3d} %] {job.cell.key}: epoch '
            f'{epoch}/{epochs}, {elapsed:.0f} s elapsed, about {left:.0f} s '
            f'left',
            flush=True,
        )


def _unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Jobs to run: without a result, or without a checkpoint they owe."""
    todo: list[Job] = []
    for job in reversed(jobs):
        owes = any(job in other.needs.values() for other in todo)
        if not job.is_finished():
            if read_result(job.folder):
                print(f'{job.cell.key}: its config has changed, it runs again')
                (job.folder / RESULT_FILE).unlink()
            todo.append(job)
        elif owes and job.checkpoint() is None:
            todo.append(job)
    if len(todo) < len(jobs):
        print(f'{len(jobs) - len(todo)} of {len(jobs)} cells are finished')
    return todo[::-1]


def run_grid(
    grid: Grid,
    out_dir: Path,
    workers: Optional[int] = None,
    train: Callable[[Config, Callable], dict] = train_config,
) -> list[str]:
    """Runs all cells without a result, from their last checkpoint if any.

    A cell whose config has changed since runs again. One that fails is told
    of at once, and the others go on.

    Args:
        grid (Grid): What to run.
        out_dir (Path): Parent of the cells' folders.
        workers (int, optional): Cells at a time, each in a process of its
            own with one thread. Defaults to None, one per available core,
            at most four.
        train (Callable): What such a process calls. Defaults to
            :func:`train_config`.

    Returns:
        list[str]: Keys of the cells that failed or need one that did.

    Raises:
        ValueError: If ``workers`` is not positive, a key is misspelt, or
            another run is at work in ``out_dir``.
    """
    if workers is not None and workers < 1:
        raise ValueError(f'no cell can run with {workers} workers')
    workers = workers or min(4, cpu_count())
    jobs = plan_jobs(grid, Path(out_dir).resolve())
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(out_dir) / '.lock', timeout=0):
            return _run_jobs(jobs, workers, train)
    except Timeout as error:
        raise ValueError(f'another run is at work in {out_dir}') from error


def _run_jobs(jobs: list[Job], workers: int, train: Callable) -> list[str]:
    """Runs what is unfinished; see :func:`run_grid`."""
    waiting = _unfinished(jobs)
    progress, context = _Progress(waiting), _process_context()
    running: dict[Job, tuple[Any, Any]] = {}
    failed: list[Job] = []

    def fail(job: Job, reason: str) -> None:
        failed.append(job)
        print(f'error: {job.cell.key} {reason}', file=sys.stderr, flush=True)

    try:
        while waiting or running:
            for job in list(waiting):
                needs = set(job.needs.values())
                if needs.intersection(failed):
                    waiting.remove(job)
                    fail(job, 'is left out, as it needs one that failed')
                elif len(running) < workers and needs.isdisjoint(
                    [*waiting, *running]
                ):
                    waiting.remove(job)
                    running[job] = _start(context, job, train)
            wait_for([p.sentinel for p, _ in running.values()], timeout=0.5)
            for job, (process, reports) in list(running.items()):
                code = process.exitcode
                with suppress(EOFError):
                    while reports.poll():
                        progress.update(job, *reports.recv())
                if code is None:
                    continue
                del running[job]
                if code or not job.is_finished():
                    said = job.console.read_text().strip().split('\n')[-1]
                    reason = f'failed with exit code {code}: {said}'
                    fail(job, f'{reason}; see {job.console}')
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()
    return [job.cell.key for job in failed]
