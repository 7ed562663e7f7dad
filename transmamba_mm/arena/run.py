# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Runs the cells of a grid, several at a time, and continues them."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from math import nan
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Optional

import torch
from joblib import cpu_count
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.utils import import_modules_from_strings

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.engine import NonFiniteError
from transmamba_mm.engine.lock import locked

from .grid import GRID_FILE, Grid
from .plan import Job, plan_jobs
from .results import RESULT_FILE, Result, read_result, write_json
from .train import train_config


def _end_with_main() -> None:
    """Ends this process as soon as the main one is gone.

    It must not go on beside the next attempt.
    """
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(job: Job, cfg: Config, train: Callable, channel: Any) -> None:
    """Runs a job in this process; what it prints goes to a file."""
    with open(job.console, 'a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_main, daemon=True).start()
    torch.set_num_threads(1)
    # Reading the file has imported them, but in another process.
    import_modules_from_strings(**cfg.get('custom_imports', dict(imports=[])))
    metric = job.grid.metric
    try:
        measured = train(cfg, lambda *epochs: channel.send(epochs), metric)
    except NonFiniteError:
        if job.cell.value is None:
            raise
        # Then this value is not the one to choose.
        measured = dict(accuracy=[(0, nan)], similarity={})
    if not measured['accuracy']:
        raise ValueError(
            f'{metric} was never measured: the config does not validate '
            f'before its last epoch ends'
        )
    name, seed = job.cell.contestant.name, job.cell.seed
    result = Result(
        name, seed, job.digest, value=job.value, metric=metric, **measured
    )
    write_json(job.folder / RESULT_FILE, vars(result))


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that there are to share."""
    count = torch.cuda.device_count()
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = map(str, range(count)) if given is None else given.split(',')
    return list(names)[:count]


@contextmanager
def _sees(gpu: Optional[str]) -> Iterator[None]:
    """Lets processes that start now see one GPU; None: what this one sees.

    It must be known before: importing MMEngine already looks for GPUs.
    """
    key, before = 'CUDA_VISIBLE_DEVICES', dict(os.environ)
    try:
        if gpu is not None:
            os.environ[key] = gpu
        yield
    finally:
        os.environ.pop(key, None)
        os.environ.update(before)


def _start(
    context: Any, job: Job, train: Callable, gpu: Optional[str]
) -> tuple[Any, Any]:
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
    with _sees(gpu):
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
        self.total = sum(map(self._epochs, jobs))
        self.done, self.seen = 0, set()
        self.start, self.last = time.monotonic(), 0.0

    @staticmethod
    def _epochs(job: Job) -> int:
        return job.base.train_cfg.get('max_epochs', 1)

    def leave_out(self, job: Job) -> None:
        """Takes a job from what there is to do."""
        self.total -= self._epochs(job)

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
        if not job.is_finished() or (owes and job.checkpoint() is None):
            todo.append(job)
    if len(todo) < len(jobs):
        print(f'{len(jobs) - len(todo)} of {len(jobs)} cells are finished')
    return todo[::-1]


def run_grid(
    grid: Grid,
    out_dir: Path,
    workers: Optional[int] = None,
    train: Callable[[Config, Callable, str], dict] = train_config,
) -> list[str]:
    """Plans the cells of a grid and runs them, see :func:`run_jobs`."""
    jobs = plan_jobs(grid, Path(out_dir).resolve())
    return run_jobs(jobs, out_dir, workers, train)


def run_jobs(
    jobs: Sequence[Job],
    out_dir: Path,
    workers: Optional[int] = None,
    train: Callable[[Config, Callable, str], dict] = train_config,
) -> list[str]:
    """Runs all cells without a result, from their last checkpoint if any.

    A cell whose config has changed since runs again. One that fails is told
    of at once, and the others go on.

    Args:
        jobs (Sequence[Job]): What to run, see
            :func:`~transmamba_mm.arena.plan.plan_jobs`.
        out_dir (Path): Parent of the cells' folders.
        workers (int, optional): Cells at a time, each in a process of its
            own with one thread. Defaults to None, one per GPU or, without,
            per available core, at most four. GPUs are handed out in turn.
        train (Callable): What such a process calls. Defaults to
            :func:`train_config`.

    Returns:
        list[str]: Keys of the cells that failed or need one that did.

    Raises:
        ValueError: If ``workers`` is not positive, or another run is at work
            in ``out_dir``.
    """
    if workers is not None and workers < 1:
        raise ValueError(f'no cell can run with {workers} workers')
    workers = workers or len(_gpus()) or min(4, cpu_count())
    with locked(out_dir):
        write_json(Path(out_dir) / GRID_FILE, asdict(jobs[0].grid))
        return _run_all(jobs, workers, train)


def _is_over(job: Job, owed: set[Job]) -> bool:
    """Whether a job has nothing to do, found out when it could start.

    What another config has left goes away.
    """
    if job.is_finished():
        if job.searches:
            print(f'{job.cell.key}: finished before, with {job.value:g}')
        if job not in owed or job.checkpoint() is not None:
            return True
        reason = 'checkpoint is gone'
    elif read_result(job.folder):
        reason = 'config has changed'
    else:
        return False
    print(f'{job.cell.key}: its {reason}, it runs again')
    # Or a kill would leave it beside a checkpoint of the middle.
    (job.folder / RESULT_FILE).unlink()
    return False


def _run_all(jobs: Sequence[Job], workers: int, train: Callable) -> list[str]:
    """Runs what is unfinished; see :func:`run_jobs`."""
    waiting = _unfinished(jobs)
    progress, context = _Progress(waiting), _process_context()
    owed = {need for job in waiting for need in job.needs.values()}
    running: dict[Job, tuple[Any, Any, Optional[str]]] = {}
    failed: list[Job] = []
    gpus = _gpus() or [None]

    def fail(job: Job, reason: str) -> None:
        failed.append(job)
        print(f'error: {job.cell.key} {reason}', file=sys.stderr, flush=True)

    try:
        while waiting or running:
            for job in list(waiting):
                if job.before.intersection(failed):
                    waiting.remove(job)
                    fail(job, 'is left out, as it needs one that failed')
                elif len(running) < workers and job.before.isdisjoint(
                    [*waiting, *running]
                ):
                    waiting.remove(job)
                    try:
                        if _is_over(job, owed):
                            progress.leave_out(job)
                        else:
                            used = [gpu for *_, gpu in running.values()]
                            gpu = min(gpus, key=used.count)
                            started = _start(context, job, train, gpu)
                            running[job] = (*started, gpu)
                    except CheckpointError as error:
                        fail(job, f'cannot go on: {error}')
            wait_for([p.sentinel for p, *_ in running.values()], timeout=0.5)
            for job, (process, reports, _) in list(running.items()):
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
        for process, *_ in running.values():
            process.terminate()
            process.join()
    return [job.cell.key for job in failed]
