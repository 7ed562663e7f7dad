# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Whole runs of the tools on the GPU, in processes of their own."""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import Context

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'quickstart' / 'deit_digits.py'
#: Top-1 of ``tools/quickstart.py`` on the CPU, three seeds, with standard
#: deviations (the teacher has one seed).
CPU_TOP1 = dict(
    teacher=(95.8, None),
    scratch=(70.67, 1.9),
    logits_kd=(68.93, 2.1),
    subclone_only=(91.8, 1.9),
    transmamba=(91.27, 2.4),
)
TAIL = 1500  # characters of the output of a tool that failed


def environment() -> dict[str, str]:
    """Environment of a tool: one thread, no interpreter of kernels."""
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable)
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'TRITON_INTERPRET'):
        env.pop(name, None)
    paths = [str(ROOT), *filter(None, [env.get('PYTHONPATH')])]
    env['PYTHONPATH'] = os.pathsep.join(paths)
    return env


class Tool:
    """A tool that runs in the background, its output in a file.

    Args:
        folder: where it runs and writes its output.
        name: of the file of its output.
        command: what to run.
    """

    def __init__(self, folder: Path, name: str, *command: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f'{name}.log'
        self.started = time.monotonic()
        with open(self.log, 'w') as log:
            # A session of its own, so that its workers end with it.
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Ends it and its workers at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors='replace')

    def finish(self, seconds: float) -> float:
        """Waits for it; returns the seconds that it took.

        Raises:
            RuntimeError: If it fails or takes longer than ``seconds``, with
                the end of its output.
        """
        try:
            code = self.process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            code = 'none, out of time'
        finally:
            self.kill()
        if code != 0:
            raise RuntimeError(
                f'{self.log.stem}: exit code {code}: {self.output()[-TAIL:]}'
            )
        return time.monotonic() - self.started


# --------------------------------------------------------------- quickstart


def quickstart(context: Context) -> dict[str, Any]:
    """Top-1 of all methods beside the figures of the CPU."""
    if context.tiny:
        return dict(note='left out: it takes half a minute on one core')
    options = ['--seeds', 2 if context.left > 110 else 1, '--workers', 6]
    folder = context.out / 'quickstart'
    tool = Tool(
        context.out,
        'quickstart',
        sys.executable,
        ROOT / 'tools' / 'quickstart.py',
        '--out-dir',
        folder,
        *options,
    )
    seconds = tool.finish(context.left - 4)
    top1 = json.loads(tool.output().strip().splitlines()[-1])
    runs: dict[str, list[float]] = {}
    for run in json.loads((folder / 'results.json').read_text()):
        runs.setdefault(run['name'], []).append(run['accuracy'][-1][1])
    return dict(
        seconds=seconds, seeds=options[1], top1=top1, runs=runs, cpu=CPU_TOP1
    )


# ---------------------------------------------------------- kill and resume


def _train(folder: Path, name: str, tiny: bool, *more: str) -> Tool:
    """Starts a run of the teacher's config in the folder ``name``."""
    return Tool(
        folder,
        name.replace('/', '_'),
        sys.executable,
        ROOT / 'tools' / 'train.py',
        CONFIG,
        '--work-dir',
        folder / name.split('/')[0],
        '--no-validate',
        *more,
        '--cfg-options',
        f'train_cfg.max_epochs={2 if tiny else 6}',
        'default_hooks.checkpoint.interval=1',
        f'train_dataloader.dataset.fraction={0.1 if tiny else 1}',
        f'experiment_name={name.replace("/", "-")}',
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = (folder / 'last_checkpoint').read_text().strip()
    return torch.load(path, map_location='cpu')['state_dict']


def resume(context: Context) -> dict[str, Any]:
    """Weights of a run that was killed and resumed beside those of another.

    A third run, which nobody kills, tells what the GPU's own order of sums
    does to weights.
    """
    folder = context.out / 'resume'
    folder.mkdir(parents=True, exist_ok=True)
    killed = _train(folder, 'killed', context.tiny)
    whole = {}
    try:
        for name in ('whole', 'again') if not context.tiny else ('whole',):
            whole[name] = _train(folder, name, context.tiny)
        first = folder / 'killed' / 'epoch_1.pth'
        while killed.runs and not first.exists() and context.left > 5:
            time.sleep(0.005)
        if not killed.runs:
            killed.finish(1)  # raises if it has failed
            raise RuntimeError('the run ended before it could be killed')
        if not first.exists():
            raise RuntimeError('no checkpoint came in time')
        time.sleep(0.05 if context.tiny else 0.2)
        killed.kill()
        at = sorted(path.name for path in first.parent.glob('epoch_*.pth'))
        resumed = _train(folder, 'killed/resumed', context.tiny, '--resume')
        whole['resumed'] = resumed
        for tool in whole.values():
            tool.finish(context.left - 4)
    finally:
        for tool in (killed, *whole.values()):
            tool.kill()
    reference = _weights(folder / 'whole')
    found: dict[str, Any] = dict(
        killed_with=at, resumed='resumed epoch: ' in resumed.output()
    )
    found['resumed_difference'] = _difference(
        reference, _weights(folder / 'killed')
    )
    if not found['resumed']:
        raise RuntimeError(f'it did not resume: {resumed.output()[-TAIL:]}')
    if 'again' in whole:
        found['repeated_difference'] = _difference(
            reference, _weights(folder / 'again')
        )
    return found


def _difference(a: dict, b: dict) -> dict[str, Any]:
    """Largest differences of two state dicts."""
    worst, name = 0.0, ''
    for key, value in a.items():
        gap = (value.double() - b[key].double()).abs().max().item()
        if gap > worst or math.isnan(gap):
            worst, name = gap, key
    scale = max(value.double().abs().max().item() for value in a.values())
    return dict(
        equal=all(torch.equal(value, b[key]) for key, value in a.items()),
        largest=worst,
        where=name,
        largest_weight=scale,
    )


# -------------------------------------------------------------- distributed


def distributed(context: Context) -> dict[str, Any]:
    """An epoch under ``tools/dist_train.sh`` with one process."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    folder = context.out / 'distributed'
    tool = Tool(
        folder,
        'distributed',
        'env',
        f'PORT={port}',
        'NCCL_DEBUG=VERSION',  # prints it when NCCL is used
        'bash',
        ROOT / 'tools' / 'dist_train.sh',
        CONFIG,
        1,
        '--work-dir',
        folder / 'run',
        '--no-validate',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'default_hooks.logger.interval=1',
        f'train_dataloader.dataset.fraction={0.1 if context.tiny else 1}',
    )
    seconds = tool.finish(context.left - 4)
    (scalars,) = (folder / 'run').glob('*/vis_data/scalars.json')
    lines = map(json.loads, scalars.read_text().splitlines())
    losses = [line['loss'] for line in lines if 'loss' in line]
    return dict(
        exit_code=0,
        seconds=seconds,
        steps=len(losses),
        first_loss=losses[0],
        last_loss=losses[-1],
        nccl='NCCL version' in tool.output(),
    )


# ------------------------------------------------------------------- report


def markdown(results: dict[str, Any]) -> list[str]:
    """Tables and lines of what has run."""
    lines = []
    found = results.get('quickstart', {})
    if 'top1' in found:
        lines += [
            '',
            f'The quickstart, {found["seeds"]} seeds, in '
            f'{found["seconds"]:.0f} s:',
            '',
            '| method | GPU | runs | CPU, 3 seeds |',
            '|---|---|---|---|',
        ]
        for name, (mean, deviation) in found['cpu'].items():
            runs = ', '.join(f'{x:.1f}' for x in found['runs'][name])
            spread = '' if deviation is None else f' ± {deviation}'
            lines.append(
                f'| {name} | {found["top1"][name]:.1f} | {runs} | '
                f'{mean:.1f}{spread} |'
            )
    found = results.get('resume', {})
    for key, what in (
        ('resumed_difference', 'Killed and resumed'),
        ('repeated_difference', 'Merely repeated'),
    ):
        if key in found:
            gap = found[key]
            lines += [
                '',
                f'{what}: final weights '
                + ('are equal.' if gap['equal'] else 'differ by at most ')
                + (
                    ''
                    if gap['equal']
                    else f'{gap["largest"]:.2e} ({gap["where"]}; the largest '
                    f'weight is {gap["largest_weight"]:.2f}).'
                ),
            ]
    found = results.get('distributed', {})
    if 'last_loss' in found:
        lines += [
            '',
            f'`dist_train.sh`, one process '
            f'({"NCCL" if found["nccl"] else "no NCCL"}): exit code '
            f'{found["exit_code"]}, loss {found["first_loss"]:.3f} to '
            f'{found["last_loss"]:.3f} in {found["steps"]} steps.',
        ]
    return lines
