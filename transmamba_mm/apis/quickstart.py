# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The quickstart: a small arena of one teacher and its students."""

import time
from pathlib import Path
from typing import Optional

from transmamba_mm.arena import Contestant, Grid, run_grid, write_report

from .model_hub import find_model_index

_MODEL = {'model.teacher_ckpt': 'teacher'}
_HOOK = {'custom_hooks.0.teacher_ckpt': 'teacher'}
#: Name to config, and what takes the teacher's weights there.
STUDENTS = {
    'scratch': ('pmamba_scratch_digits', {}),
    'logits_kd': ('logits-kd_deit_pmamba_digits', _MODEL),
    'subclone_only': ('pmamba_subclone-only_digits', _HOOK),
    'transmamba': ('transmamba_deit_pmamba_digits', _MODEL),
    'paper': ('transmamba_deit_pmamba_digits_paper', _MODEL),
}
#: What the last line of the output holds.
REPORTED = ('teacher', 'scratch', 'logits_kd', 'subclone_only', 'transmamba')


def _epochs(number: int) -> dict[str, int]:
    ends = ('train_cfg.max_epochs', 'param_scheduler.0.end')
    checkpoint = 'default_hooks.checkpoint.interval'
    return dict.fromkeys((*ends, checkpoint), number)


def make_grid(
    seeds: int = 3, teacher_epochs: int = 60, student_epochs: int = 15
) -> Grid:
    """What is compared.

    Args:
        seeds (int): Runs of each student; the teacher has one.
        teacher_epochs (int): Epochs of the teacher.
        student_epochs (int): Epochs of every student.

    Returns:
        Grid: The grid.
    """
    index = find_model_index()
    if index is None:
        raise FileNotFoundError('no configs: reinstall transmamba_mm')
    path = f'{index.parent}/configs/quickstart/{{}}.py'.format
    own = _epochs(teacher_epochs)
    students = [
        Contestant(name, path(config), needs=needs)
        for name, (config, needs) in STUDENTS.items()
    ]
    return Grid(
        f'PlainMamba from 259 labels, 500 test digits, {seeds} seeds',
        [
            Contestant('teacher', path('deit_digits'), own, seeds=[0]),
            *students,
        ],
        seeds=range(seeds),
        options={'train_cfg.val_interval': 1, **_epochs(student_epochs)},
        pairs=[('transmamba', x) for x in STUDENTS if x != 'transmamba'],
    )


def quickstart(
    out_dir: Optional[str] = None, workers: Optional[int] = None, **settings
) -> dict[str, float]:
    """Runs everything, prints the table and writes the figures.

    Args:
        out_dir (str, optional): Where everything goes; what is finished
            there is not run again. Defaults to a new folder below
            ``work_dirs/quickstart``.
        workers (int, optional): See :func:`~transmamba_mm.arena.run_grid`.
        settings: See :func:`make_grid`.

    Returns:
        dict[str, float]: Mean top-1 in percent of :data:`REPORTED`.

    Raises:
        SystemExit: If a run failed.
    """
    if out_dir is None:
        out_dir = f'work_dirs/quickstart/{time.strftime("%Y%m%d_%H%M%S")}'
    folder, grid = Path(out_dir).resolve(), make_grid(**settings)
    print(f"Arena on scikit-learn's digits; logs in {folder}", flush=True)
    failed = run_grid(grid, folder, workers)
    if failed:
        raise SystemExit(f'no result: {", ".join(failed)}; see above')
    top1 = write_report(grid, folder)['contestants']
    return {name: round(top1[name]['mean'], 2) for name in REPORTED}
