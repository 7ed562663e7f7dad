# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Real weights on real images: what each way of learning reaches.

The environment variable ``TRANSMAMBA_GPU_DATA`` names a folder, see
:mod:`.transfer_data`. A pretrained ViT-Ti is fine-tuned on 200 classes of 80
images, and teaches a PlainMamba of its width and depth, at 224 pixels. All
students see equally many images, in the same order and with the same
augmentation for the same seed, so that differences are paired. The learning
rates were chosen on smaller images, on other runs; the validation images are
looked at once, at the end of a run.
"""

import math
import os
import statistics
import time
import traceback
from pathlib import Path
from typing import Any

from torch import nn

from . import Context
from . import transfer_data as data
from .transfer_methods import (
    METHODS,
    TINY,
    Plan,
    Study,
    fine_tune,
    order,
    top1,
)

SECONDS = 500
VARIABLE = 'TRANSMAMBA_GPU_DATA'
MAX_SEEDS = 10


def run_one(
    plan: Plan,
    method: str,
    seed: int,
    teacher: nn.Module,
    images: data.Images,
    held_out: data.Images,
) -> dict[str, Any]:
    """Trains one student; top-1, and what it took."""
    started = time.monotonic()
    study = Study(plan, teacher, images, seed, method != 'scratch')
    batches = order(len(images), plan.seen, plan.batch, seed, study.device)
    loss = study.learn(method, batches)
    study.student.eval()
    trained = time.monotonic()
    accuracy = top1(lambda x: study.student(x, mode='tensor'), held_out)
    return dict(
        method=method,
        seed=seed,
        top1=accuracy,
        loss=loss,
        coverage=study.coverage,
        train_seconds=trained - started,
        seconds=time.monotonic() - started,
    )


def run(context: Context) -> None:
    plan = TINY if context.tiny else Plan()
    folder = os.environ.get(VARIABLE)
    if context.tiny:
        folder = context.out / 'transfer_data'
        data.make_tiny(folder, **plan.vit)
    if not folder:
        context.save({'note': f'{VARIABLE} is not set: no data'})
        return
    folder = Path(folder)
    if not (folder / 'tiny_imagenet').is_dir():
        context.save({'note': f'{folder} has no tiny_imagenet'})
        return
    splits = folder / 'tiny_imagenet'
    images, wnids = data.read_images(
        splits / 'train', plan.side, context.device
    )
    held_out, _ = data.read_images(splits / 'val', plan.side, context.device)
    teacher = data.read_teacher_model(
        folder / data.WEIGHTS, wnids, **plan.vit
    ).to(context.device)
    about: dict[str, Any] = dict(
        plan=vars(plan),
        classes=len(wnids),
        images=len(images),
        held_out=len(held_out),
        teacher_before=top1(teacher.eval(), held_out),
    )
    context.save({'about': about})
    fine_tune(plan, teacher, images)
    about['teacher'] = top1(teacher, held_out)
    context.save({'about': about})
    students(context, plan, teacher, images, held_out)


def students(context: Context, plan: Plan, teacher, images, held_out) -> None:
    """Trains students of all methods, seed after seed, until time is up."""
    runs: list[dict[str, Any]] = []
    longest: dict[str, float] = {}
    for seed in range(1 if context.tiny else MAX_SEEDS):
        for method in METHODS:
            needed = 1.05 * longest.get(method, 0 if context.tiny else 30) + 3
            if context.left < needed:
                context.save({'ended': f'no time for seed {seed}, {method}'})
                return
            try:
                found = run_one(plan, method, seed, teacher, images, held_out)
                longest[method] = found['seconds']
            except Exception as error:
                traceback.print_exc()
                text = f'{type(error).__name__}: {error}'[:1000]
                found = dict(method=method, seed=seed, error=text)
            runs.append(found)
            context.save({'runs': runs})


# ------------------------------------------------------------------- report


def markdown(results: dict[str, Any]) -> list[str]:
    """Top-1 of all runs, and differences to subcloning alone."""
    if 'note' in results:
        return [results['note']]
    about = results['about']
    plan = about['plan']
    lines = [
        f'{about["images"]} images of {about["classes"]} classes, '
        f'{about["held_out"]} to validate, at {plan["side"]} px; '
        f'{plan["seen"]} seen by each student, batch {plan["batch"]}. '
        f'Teacher: {about["teacher_before"]:.1f} % before fine-tuning, '
        f'{about.get("teacher", math.nan):.1f} % after.',
        '',
        '| method | top-1 (%), by seed | mean | minus subclone only, paired '
        '| seconds |',
        '|---|---|---|---|---|',
    ]
    runs = [found for found in results.get('runs', []) if 'top1' in found]
    by_method = {
        method: {x['seed']: x for x in runs if x['method'] == method}
        for method in METHODS
    }
    base = by_method['subclone only']
    for method, found in by_method.items():
        if not found:
            continue
        values = [x['top1'] for x in found.values()]
        gaps = [
            x['top1'] - base[seed]['top1']
            for seed, x in found.items()
            if seed in base and method != 'subclone only'
        ]
        gap = f'{statistics.mean(gaps):+.2f}' if gaps else ''
        if len(gaps) > 1:
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            gap += f' (s.e. {error:.2f})'
        seconds = statistics.mean(x['train_seconds'] for x in found.values())
        lines.append(
            f'| {method} | {" ".join(f"{x:.1f}" for x in values)} | '
            f'{statistics.mean(values):.2f} | {gap} | {seconds:.1f} |'
        )
    for found in results.get('runs', []):
        if 'error' in found:
            lines += ['', f'{found["method"]}: {found["error"][-300:]}']
    if 'ended' in results:
        lines += ['', results['ended']]
    return lines
