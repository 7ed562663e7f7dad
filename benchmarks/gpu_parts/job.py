# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The job: a distillation step, the quickstart, resumed and distributed runs.

First the step, alone on the GPU; then the runs, at once, since nothing of
them is timed. What fails or has no time left is recorded, and the others go
on.
"""

import concurrent.futures
import gc
import traceback
from typing import Any, Callable

import torch

from . import Context, job_runs, job_step

SECONDS = 150
#: The runs, and the seconds without which they do not start: on a GPU (with
#: 16 cores), and at the smallest sizes (on one).
RUNS = {
    'quickstart': (job_runs.quickstart, 60, 0),
    'resume': (job_runs.resume, 40, 25),
    'distributed': (job_runs.distributed, 25, 12),
}


def run(context: Context) -> None:
    try:
        job_step.measure(context, lambda found: context.save({'step': found}))
    except Exception as error:
        context.save({'step_error': _text(error)})
    gc.collect()
    if not context.tiny:
        torch.cuda.empty_cache()
    workers = 1 if context.tiny else len(RUNS)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = {
            pool.submit(_isolated, context, *about): name
            for name, about in RUNS.items()
        }
        for future in concurrent.futures.as_completed(futures):
            context.save({futures[future]: future.result()})


def _isolated(
    context: Context, function: Callable, seconds: float, tiny_seconds: float
) -> dict[str, Any]:
    """What a run has found, or why it has found nothing."""
    needed = tiny_seconds if context.tiny else seconds
    if context.left < needed:
        return dict(
            note=f'left out: {context.left:.0f} s left, {needed} s needed'
        )
    try:
        return function(context)
    except Exception as error:
        return dict(error=_text(error))


def _text(error: Exception) -> str:
    traceback.print_exc()
    return f'{type(error).__name__}: {error}'[:3000]


def markdown(results: dict[str, Any]) -> list[str]:
    lines = []
    if 'step' in results:
        lines += job_step.markdown(results['step'])
    if 'step_error' in results:
        lines += ['', f'step: {_short(results["step_error"])}']
    lines += job_runs.markdown(results)
    for name in RUNS:
        found = results.get(name, {})
        for key in ('note', 'error'):
            if key in found:
                lines += ['', f'{name}: {_short(found[key])}']
    return lines


def _short(text: str) -> str:
    return ' '.join(text.split())[-300:]
