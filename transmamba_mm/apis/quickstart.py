# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The quickstart: one teacher, its students, a table and two figures.

Trains the configs of ``configs/quickstart``, several at a time with one
thread each: a scratch student needs no teacher and trains beside it.
"""

import json
import multiprocessing
import os
import queue
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import transmamba_mm
from transmamba_mm.arena import mean_and_deviation, paired_difference

TEACHER = 'deit_digits'
#: Result name to config; the order of the table.
STUDENTS = {
    'scratch': 'pmamba_scratch_digits',
    'logits_kd': 'logits-kd_deit_pmamba_digits',
    'subclone_only': 'pmamba_subclone-only_digits',
    'transmamba': 'transmamba_deit_pmamba_digits',
    'transmamba_logits_kd': 'transmamba-logits-kd_deit_pmamba_digits',
}
#: What the last line of the output holds, next to the teacher.
REPORTED = ('scratch', 'logits_kd', 'subclone_only', 'transmamba')
_ACCURACY = 'accuracy/top1'
_SIMILARITY = 'loss_transmamba/similarities/'


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name (str): ``'teacher'`` or a key of :data:`STUDENTS`.
        config (str): Path of the config.
        work_dir (str): Where the run writes.
        seed (int): Seed of the run.
        epochs (int, optional): Overrides the config's number of epochs.
        teacher_ckpt (str, optional): The teacher's weights.
    """

    name: str
    config: str
    work_dir: str
    seed: int
    epochs: Optional[int] = None
    teacher_ckpt: Optional[str] = None

    @property
    def label(self) -> str:
        """str: Name for progress lines."""
        return f'{self.name} (seed {self.seed})'

    @property
    def final_checkpoint(self) -> str:
        """str: Path of the newest checkpoint, once the job has run."""
        return (Path(self.work_dir) / 'last_checkpoint').read_text().strip()


@dataclass
class Result:
    """What one training run reports.

    Attributes:
        name (str): See :class:`Job`.
        seed (int): See :class:`Job`.
        accuracy (list[tuple[int, float]]): (epoch, top-1 in percent).
        similarity (dict[str, list[tuple[int, float]]]): For each
            ``direction/layer``, (iteration, cosine similarity).
    """

    name: str
    seed: int
    accuracy: list
    similarity: dict

    @property
    def final(self) -> float:
        """float: Top-1 after the last epoch, in percent."""
        return self.accuracy[-1][1]


def config_dir() -> Path:
    """Folder of the configs, of the repository or of the installation."""
    package = Path(transmamba_mm.__file__).resolve().parent
    for folder in (package.parent / 'configs', package / '.mim' / 'configs'):
        if (folder / 'quickstart').is_dir():
            return folder
    raise FileNotFoundError(
        'the quickstart configs are neither beside the package nor in its '
        '.mim folder: reinstall transmamba_mm'
    )


# ------------------------------------------------------------------ workers

_progress: Any = None


def _start_worker(progress: Any) -> None:
    """Prepares a worker process: one thread, and where to report epochs."""
    global _progress
    _progress = progress
    torch.set_num_threads(1)


def _load_config(job: Job):
    """The config of a job, with its paths, seed and epochs filled in."""
    cfg = Config.fromfile(job.config)
    cfg.work_dir = job.work_dir
    cfg.randomness.seed = job.seed
    if job.teacher_ckpt is not None:
        if 'teacher_ckpt' in cfg.model:
            cfg.model.teacher_ckpt = job.teacher_ckpt
        else:
            for hook in cfg.get('custom_hooks', ()):
                if 'teacher_ckpt' in hook:
                    hook.teacher_ckpt = job.teacher_ckpt
    if job.epochs is not None:
        cfg.train_cfg.max_epochs = job.epochs
        cfg.train_cfg.val_interval = 1
        cfg.param_scheduler[0].end = job.epochs
        cfg.default_hooks.checkpoint.interval = job.epochs
    return cfg


class ReportEpoch(Hook):
    """Tells the main process about each finished epoch of a job.

    Args:
        job (Job): The job that this process runs.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def after_train_epoch(self, runner: Runner) -> None:
        """Sends the number of the epoch."""
        if _progress is not None:
            _progress.put((self.job, runner.epoch + 1, runner.max_epochs))


def run_job(job: Job) -> Result:
    """Trains one config in this process; its output goes to a file."""
    os.makedirs(job.work_dir, exist_ok=True)
    with (
        open(Path(job.work_dir) / 'console.log', 'w') as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        runner = Runner.from_cfg(_load_config(job))
        runner.register_hook(ReportEpoch(job))
        runner.train()
    # Each run has a folder, named by its time; an older one may be there.
    runs = sorted(Path(job.work_dir).glob('*/vis_data/scalars.json'))
    return read_result(job, runs[-1])


def read_result(job: Job, scalars: Path) -> Result:
    """Reads accuracies and similarities from a run's ``scalars.json``."""
    accuracy, similarity = [], {}
    for line in scalars.read_text().splitlines():
        entry = json.loads(line)
        if _ACCURACY in entry:
            accuracy.append((entry['step'], entry[_ACCURACY]))
        for key, value in entry.items():
            if key.startswith(_SIMILARITY):
                curve = similarity.setdefault(key[len(_SIMILARITY) :], [])
                curve.append((entry['step'], value))
    return Result(job.name, job.seed, accuracy, similarity)


# ----------------------------------------------------------------- progress


class Progress:
    """Prints finished epochs with an estimate of the remaining time."""

    def __init__(self, total_epochs: int) -> None:
        self.total = total_epochs
        self.done = 0
        self.start = time.monotonic()
        self._last = 0.0

    def update(self, job: Job, epoch: int, epochs: int) -> None:
        """Counts one epoch; prints at most every two seconds."""
        self.done += 1
        now = time.monotonic()
        if epoch < epochs and now - self._last < 2:
            return
        self._last = now
        elapsed = now - self.start
        left = elapsed * (self.total - self.done) / self.done
        print(
            f'[{100 * self.done // self.total:3d} %] {job.label}: epoch '
            f'{epoch}/{epochs}, {elapsed:.0f} s elapsed, about {left:.0f} s '
            f'left',
            flush=True,
        )


def _drain(progress: Progress, messages: Any) -> None:
    while True:
        try:
            progress.update(*messages.get_nowait())
        except queue.Empty:
            return


# --------------------------------------------------------------------- runs


def _available_cores() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    out_dir: Path,
    seeds: int = 3,
    workers: Optional[int] = None,
    teacher_epochs: int = 60,
    student_epochs: int = 15,
) -> list[Result]:
    """Trains the teacher once and every student once per seed.

    Args:
        out_dir (Path): Parent of all work directories.
        seeds (int): Runs of each student. Defaults to 3.
        workers (int, optional): Concurrent runs. Defaults to None, one per
            available core, at most four.
        teacher_epochs (int): Epochs of the teacher. Defaults to 60.
        student_epochs (int): Epochs of every student. Defaults to 15.

    Returns:
        list[Result]: All results, the teacher's first.
    """
    if workers is None:
        workers = min(4, _available_cores())
    configs = config_dir() / 'quickstart'

    def job(name: str, config: str, seed: int, epochs: int, ckpt=None) -> Job:
        folder = str(out_dir / f'{config}_seed{seed}')
        path = str(configs / f'{config}.py')
        return Job(name, path, folder, seed, epochs, ckpt)

    teacher = job('teacher', TEACHER, 0, teacher_epochs)
    progress = Progress(
        teacher_epochs + len(STUDENTS) * seeds * student_epochs
    )
    # Fresh processes: a fork would inherit the threads of this one.
    context = multiprocessing.get_context('spawn')
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(messages := manager.Queue(),),
        ) as pool,
    ):

        def submit(name: str, seed: int, ckpt: Optional[str]) -> Future:
            return pool.submit(
                run_job,
                job(name, STUDENTS[name], seed, student_epochs, ckpt),
            )

        taught = pool.submit(run_job, teacher)
        pending = {taught}
        pending |= {submit('scratch', seed, None) for seed in range(seeds)}
        results = []
        while pending:
            finished, pending = wait_for(
                pending, timeout=0.5, return_when=FIRST_COMPLETED
            )
            _drain(progress, messages)
            for future in finished:
                results.append(future.result())
            if taught in finished:
                ckpt = teacher.final_checkpoint
                pending |= {
                    submit(name, seed, ckpt)
                    for name in STUDENTS
                    if name != 'scratch'
                    for seed in range(seeds)
                }
        _drain(progress, messages)
    order = ['teacher', *STUDENTS]
    return sorted(results, key=lambda r: (order.index(r.name), r.seed))


# ------------------------------------------------------------------ reports


def group(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Groups results by name, in their order."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.name, []).append(result)
    return grouped


def table(results: Sequence[Result]) -> str:
    """Final top-1 per method, and what TransMamba adds to each.

    The last column is paired over the seeds, with a 95 % interval.
    """
    finals = {
        name: {result.seed: result.final for result in runs}
        for name, runs in group(results).items()
    }
    ours = finals['transmamba']
    lines = [
        f'{"method":<22}{"top-1 (%)":>14}  {"runs":>4}  TransMamba minus it'
    ]
    for name, values in finals.items():
        mean, std = mean_and_deviation(list(values.values()))
        lead = ''
        if name not in ('teacher', 'transmamba'):
            lead = str(paired_difference(ours, values))
        top1 = f'{mean:>7.1f} ± {std:<4.1f}'
        lines.append(f'{name:<22}{top1}  {len(values):>4}  {lead}')
    lines.append(
        '(paired over seeds, 95 % interval; other processors give other '
        'figures)'
    )
    return '\n'.join(line.rstrip() for line in lines)


def plot_accuracy(results: Sequence[Result], path: Path) -> None:
    """Draws mean accuracy over the epochs, with one standard deviation."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.add_subplot()
    grouped = group(results)
    teacher = grouped.pop('teacher')[0].final
    axes.axhline(teacher, color='black', ls='--', lw=1, label='teacher')
    for name, runs in grouped.items():
        epochs = [epoch for epoch, _ in runs[0].accuracy]
        points = [
            mean_and_deviation([run.accuracy[i][1] for run in runs])
            for i in range(len(epochs))
        ]
        means = [mean for mean, _ in points]
        (line,) = axes.plot(epochs, means, label=name.replace('_', ' '))
        axes.fill_between(
            epochs,
            [mean - std for mean, std in points],
            [mean + std for mean, std in points],
            color=line.get_color(),
            alpha=0.15,
            lw=0,
        )
    axes.set(
        xlabel='epoch',
        ylabel='top-1 on 500 test digits (%)',
        title=f'PlainMamba from 259 labels, {len(runs)} seeds',
    )
    axes.legend(frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)


def plot_similarity(results: Sequence[Result], path: Path) -> None:
    """Draws each layer's similarity to the teacher, one panel a direction."""
    curves = group(results)['transmamba'][0].similarity
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


def quickstart(
    out_dir: Optional[str] = None,
    seeds: int = 3,
    workers: Optional[int] = None,
    teacher_epochs: int = 60,
    student_epochs: int = 15,
) -> dict[str, float]:
    """Runs everything, prints the table and writes the figures.

    Args:
        out_dir (str, optional): Where everything goes. Defaults to a new
            folder below ``work_dirs/quickstart``.
        seeds (int): See :func:`run_all`.
        workers (int, optional): See :func:`run_all`.
        teacher_epochs (int): See :func:`run_all`.
        student_epochs (int): See :func:`run_all`.

    Returns:
        dict[str, float]: Mean top-1 in percent of the teacher and of the
        methods in :data:`REPORTED`.
    """
    if out_dir is None:
        out_dir = f'work_dirs/quickstart/{time.strftime("%Y%m%d_%H%M%S")}'
    folder = Path(out_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(
        f'One teacher and {seeds} seeds of {len(STUDENTS)} students on '
        f"scikit-learn's digits; logs in {folder}",
        flush=True,
    )
    results = run_all(folder, seeds, workers, teacher_epochs, student_epochs)
    print('\n' + table(results))
    plot_accuracy(results, folder / 'accuracy.png')
    plot_similarity(results, folder / 'similarity.png')
    print(f'figures: {folder / "accuracy.png"}, {folder / "similarity.png"}')
    means = {
        name: round(statistics.mean(run.final for run in runs), 2)
        for name, runs in group(results).items()
    }
    with open(folder / 'results.json', 'w') as file:
        json.dump([vars(result) for result in results], file)
    sys.stdout.flush()
    return {name: means[name] for name in ('teacher', *REPORTED)}
