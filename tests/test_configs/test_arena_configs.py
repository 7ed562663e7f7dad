# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Grids of the arena: what is compared, and that it can be built."""

import pytest
from config_cases import build
from helpers import CONFIGS, ROOT

from transmamba_mm.arena import beside_paper, read_grid
from transmamba_mm.arena.grid import stem
from transmamba_mm.arena.leaderboard import make_leaderboard
from transmamba_mm.arena.plan import plan_jobs

GRIDS = sorted(path.stem for path in (CONFIGS / 'arena').glob('*.py'))
#: Those of the paper's size.
FULL = sorted(path.stem for path in (CONFIGS / 'arena/paper').glob('*.py'))


@pytest.fixture(params=GRIDS)
def jobs(request, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    grid = read_grid(f'configs/arena/{request.param}.py')
    return plan_jobs(grid, tmp_path)


def _images(cfg) -> tuple:
    """Which images are seen how often; of partly labelled ones, how many."""
    epochs, loader = cfg.train_cfg.max_epochs, cfg.train_dataloader
    dataset = loader.dataset
    if dataset.type != 'transmamba.PartlyLabelledDataset':
        return str(loader.to_dict()), epochs
    share = dataset.dataset.fraction
    return round(share * epochs, 6), round(dataset.labelled * share, 6)


def test_all_contestants_see_the_same_images(jobs):
    """But for those that others learn from."""
    needed = {job for each in jobs for job in each.needs.values()}
    jobs = [job for job in jobs if job not in needed]
    budgets = {
        (_images(job.base), job.cell.seed, job.cell.contestant.variant)
        for job in jobs
    }
    groups = {(j.cell.seed, j.cell.contestant.variant) for j in jobs}
    assert len(budgets) == len(groups)


def test_seeds_draw_other_labels(jobs):
    """Where a share of the data is drawn."""
    for job in jobs:
        assert job.base.randomness.seed == job.cell.seed
        dataset = job.base.train_dataloader.dataset
        if dataset.type == 'transmamba.PartlyLabelledDataset':
            assert dataset.seed == job.cell.seed
            dataset = dataset.dataset
        if dataset.type == 'transmamba.FractionDataset':
            assert dataset.seed == job.cell.seed


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
    assert losses
    assert all(losses)


@pytest.mark.parametrize('name', FULL)
def test_grids_of_the_papers_size_can_be_built(name, monkeypatch, tmp_path):
    """Without data, weights or a step; and they name what is printed."""
    monkeypatch.chdir(ROOT)
    grid = read_grid(f'configs/arena/paper/{name}.py', seeds=1)
    jobs = {
        stem(job.cell.contestant): job for job in plan_jobs(grid, tmp_path)
    }
    for job in jobs.values():
        build(job.base)
        assert job.base.auto_scale_lr.enable
    beside = beside_paper(grid, make_leaderboard(grid, []))
    assert beside.count('not run') == len(grid.paper) > 5


def test_what_is_published_is_of_these_configs(monkeypatch):
    """A change that alters no result must not alter a digest, see plan.py."""
    monkeypatch.chdir(ROOT)
    published = [*(ROOT / 'docs/results/arena').glob('*/*/result.json')]
    for folder in {path.parents[1] for path in published}:
        jobs = plan_jobs(read_grid(f'configs/arena/{folder.name}.py'), folder)
        for job in jobs:
            if (job.folder / 'result.json').exists():
                assert job.is_finished(), job.cell.key
