# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""One training run of the arena: it is trained, watched and measured."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmrazor.models.algorithms import SingleTeacherDistill

from transmamba_mm.contract import teachers_of

from .results import read_curves

_COSTS = 'arena_costs'


class Meter(Hook):
    """Adds up what training costs; a resumed run goes on with the sums.

    They are those of the epochs that count: what a killed run has done since
    its last checkpoint is done, and counted, again. Energy and CO2 are
    codecarbon's estimates for this process, where it is installed.
    """

    priority = 'LOW'  # before the checkpoint, which stores the sums

    def before_train(self, runner: Runner) -> None:
        """Takes up the sums of an earlier attempt."""
        self.rows = list(runner.message_hub.get_info(_COSTS, []))
        self.images = self.teacher_images = self._in_step = 0
        if isinstance(runner.model, SingleTeacherDistill):
            for teacher in teachers_of(runner.model.teacher).values():
                teacher.register_forward_pre_hook(self._see_teacher)
        self.tracker = None
        if find_spec('codecarbon'):
            from codecarbon import OfflineEmissionsTracker

            # The country is taken from codecarbon's own configuration.
            self.tracker = OfflineEmissionsTracker(
                tracking_mode='process',
                allow_multiple_runs=True,
                save_to_file=False,
                log_level='error',
            )

    def _see_teacher(self, module: torch.nn.Module, args: tuple) -> None:
        self._in_step += len(args[0])

    def before_train_epoch(self, runner: Runner) -> None:
        """Starts the clocks."""
        self.images = self.teacher_images = 0
        if self.tracker:
            self.tracker.start_task(f'epoch {runner.epoch}')
        self._start = self._clocks()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Forgets what other hooks, such as checks, have made of teachers."""
        self._in_step = 0

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Counts the images of a step."""
        self.images += len(data_batch['inputs'])
        self.teacher_images += self._in_step

    def after_train_epoch(self, runner: Runner) -> None:
        """Adds a row of sums since the start of the training."""
        wall, cpu = (
            now - then for now, then in zip(self._clocks(), self._start)
        )
        found = dict(
            images=self.images,
            teacher_images=self.teacher_images,
            seconds=wall,
            cpu_seconds=cpu,
        )
        if self.tracker:
            used = self.tracker.stop_task()
            found.update(
                energy_kwh=used.energy_consumed, co2_kg=used.emissions
            )
        last = self.rows[-1] if self.rows else dict.fromkeys(found, 0)
        # Of what an earlier attempt has not measured there is no sum.
        row = {key: last[key] + found[key] for key in found if key in last}
        self.rows.append(dict(epoch=runner.epoch + 1, **row))
        runner.message_hub.update_info(_COSTS, self.rows)

    @staticmethod
    def _clocks() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


class Watch(Hook):
    """Tells about each finished epoch, once its checkpoint is written.

    Args:
        report (Callable): Takes the epoch and the number of epochs.
        metric (str): What each validation must measure.
    """

    priority = 'LOWEST'

    def __init__(
        self, report: Callable[[int, int], None], metric: str
    ) -> None:
        self.report = report
        self.metric = metric

    def after_train_epoch(self, runner: Runner) -> None:
        """Reports the epoch."""
        self.report(runner.epoch + 1, runner.max_epochs)

    def after_val_epoch(
        self, runner: Runner, metrics: Optional[dict[str, float]] = None
    ) -> None:
        """Stops at the first validation if it measures something else."""
        if self.metric not in metrics:
            raise ValueError(
                f'val_evaluator measures {", ".join(sorted(metrics))}, not '
                f"{self.metric}, which is the grid's metric"
            )


def train_config(cfg: Config, report: Callable, metric: str) -> dict[str, Any]:
    """Trains a config in this process.

    Args:
        cfg (Config): The config.
        report (Callable): See :class:`Watch`.
        metric (str): See :class:`~transmamba_mm.arena.grid.Grid`.

    Returns:
        dict: What :class:`~transmamba_mm.arena.results.Result` says of a
        training: ``accuracy``, ``similarity``, ``costs`` and ``device``.
    """
    runner = Runner.from_cfg(cfg)
    meter = Meter()
    runner.register_hook(meter)
    runner.register_hook(Watch(report, metric))
    runner.train()
    gpu = torch.cuda.is_available()
    return dict(
        **read_curves(Path(cfg.work_dir), metric),
        costs=meter.rows,
        device=torch.cuda.get_device_name() if gpu else 'cpu',
    )
