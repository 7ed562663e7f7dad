# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The quickstarts: small arenas of one teacher and its students."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Optional

from transmamba_mm.arena import (
    Contestant,
    Grid,
    read_grid,
    run_grid,
    write_report,
)
from transmamba_mm.datasets.toy_videos import make_toy_videos
from transmamba_mm.datasets.toy_vqa import make_toy_vqa

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
#: Where the configs look for the toy videos and the toy questions.
TOY_VIDEOS, TOY_VQA = 'data/toy_videos', 'data/toy_vqa'


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
    path = f'{_configs()}/quickstart/{{}}.py'.format
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


def make_retrieval_grid(
    seeds: int = 3, teacher_epochs: int = 20, student_epochs: int = 10
) -> Grid:
    """What is compared on toy videos, see ``configs/arena/toy_videos.py``.

    Args:
        seeds (int): Runs of each student; the teacher has one.
        teacher_epochs (int): Epochs of the teacher.
        student_epochs (int): Epochs of every student.

    Returns:
        Grid: The grid.
    """
    return _arena('toy_videos', seeds, teacher_epochs, student_epochs)


def make_vqa_grid(
    seeds: int = 3, teacher_epochs: int = 12, student_epochs: int = 5
) -> Grid:
    """Likewise on toy questions, see ``configs/arena/toy_vqa.py``."""
    return _arena('toy_vqa', seeds, teacher_epochs, student_epochs)


def _arena(
    name: str, seeds: int, teacher_epochs: int, student_epochs: int
) -> Grid:
    root = _configs()
    grid = read_grid(str(root / 'arena' / f'{name}.py'), seeds)
    epochs = {'teacher': _epochs(teacher_epochs)}
    contestants = [
        replace(
            each,
            config=str(root.parent / each.config),
            options={**epochs.get(each.name, {}), **each.options},
        )
        for each in grid.contestants
    ]
    options = {**grid.options, **_epochs(student_epochs)}
    return replace(grid, contestants=contestants, options=options)


def quickstart(
    out_dir: Optional[str] = None, workers: Optional[int] = None, **settings
) -> dict[str, float]:
    """Runs everything on digits, prints the table and writes the figures.

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
    print("Arena on scikit-learn's digits", flush=True)
    found = _run(make_grid(**settings), 'quickstart', out_dir, workers)
    return {name: found[name] for name in REPORTED}


def quickstart_retrieval(
    out_dir: Optional[str] = None,
    workers: Optional[int] = None,
    clips: int = 2000,
    **settings,
) -> dict[str, float]:
    """Likewise on toy videos, which are made first.

    Args:
        out_dir (str, optional): See :func:`quickstart`; below
            ``work_dirs/quickstart-retrieval``.
        workers (int, optional): See :func:`~transmamba_mm.arena.run_grid`.
        clips (int): Videos to train the teacher on; students have a quarter.
        settings: See :func:`make_retrieval_grid`.

    Returns:
        dict[str, float]: Mean recall at 1 in percent, text to video.

    Raises:
        SystemExit: If a run failed.
    """
    print(f'Arena on toy videos, made in {TOY_VIDEOS}', flush=True)
    make_toy_videos(TOY_VIDEOS, num_train=clips)
    grid = make_retrieval_grid(**settings)
    return _run(grid, 'quickstart-retrieval', out_dir, workers)


def quickstart_vqa(
    out_dir: Optional[str] = None,
    workers: Optional[int] = None,
    images: int = 6000,
    **settings,
) -> dict[str, float]:
    """Likewise on toy questions, which are made first.

    Args:
        out_dir (str, optional): See :func:`quickstart`; below
            ``work_dirs/quickstart-vqa``.
        workers (int, optional): See :func:`~transmamba_mm.arena.run_grid`.
        images (int): Images to train the teacher on; students have a quarter.
        settings: See :func:`make_vqa_grid`.

    Returns:
        dict[str, float]: Mean share of right answers in percent.

    Raises:
        SystemExit: If a run failed.
    """
    print(f'Arena on toy questions, made in {TOY_VQA}', flush=True)
    make_toy_vqa(TOY_VQA, num_train=images)
    return _run(make_vqa_grid(**settings), 'quickstart-vqa', out_dir, workers)


def _configs() -> Path:
    """The folder of the configs, of the package or of the repository."""
    index = find_model_index()
    if index is None:
        raise FileNotFoundError('no configs: reinstall transmamba_mm')
    return index.parent / 'configs'


def _run(
    grid: Grid, name: str, out_dir: Optional[str], workers: Optional[int]
) -> dict[str, float]:
    if out_dir is None:
        out_dir = f'work_dirs/{name}/{time.strftime("%Y%m%d_%H%M%S")}'
    folder = Path(out_dir).resolve()
    print(f'Logs in {folder}', flush=True)
    failed = run_grid(grid, folder, workers)
    if failed:
        raise SystemExit(f'no result: {", ".join(failed)}; see above')
    found = write_report(grid, folder)['contestants']
    return {name: round(row['mean'], 2) for name, row in found.items()}
