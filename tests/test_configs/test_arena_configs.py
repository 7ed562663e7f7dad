# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Grids of the arena: what is compared, and that it can be built."""

import pytest
from config_cases import build
from helpers import CONFIGS, ROOT

from transmamba_mm.arena import read_grid
from transmamba_mm.arena.plan import plan_jobs

GRIDS = sorted(path.stem for path in (CONFIGS / 'arena').glob('*.py'))


@pytest.fixture(params=GRIDS)
def jobs(request, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    grid = read_grid(f'configs/arena/{request.param}.py')
    return plan_jobs(grid, tmp_path)


def test_all_contestants_see_the_same_images(jobs):
    """But for those that others learn from."""
    needed = {job for each in jobs for job in each.needs.values()}
    jobs = [job for job in jobs if job not in needed]
    budgets = {
        (
            str(job.base.train_dataloader.to_dict()),
            job.base.train_cfg.max_epochs,
            job.cell.seed,
        )
        for job in jobs
    }
    assert len(budgets) == len({job.cell.seed for job in jobs})


def test_seeds_draw_other_labels(jobs):
    for job in jobs:
        assert job.base.randomness.seed == job.cell.seed
        assert job.base.train_dataloader.dataset.seed == job.cell.seed


def test_every_contestant_can_be_built(jobs):
    built = {}
    for job in jobs:
        name = job.cell.contestant.name
        if name not in built:
            built[name] = build(job.base)
    losses = [
        set(model.distiller.distill_losses)
        for name, model in built.items()
        if 'alpha' in vars(model)
    ]
    assert len(losses) > 2
    assert all(losses)
