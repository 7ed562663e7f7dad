# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""An arena that is killed again and again, through its command line."""

import random
import signal
import time

import pytest
from helpers import CONFIGS, TOOLS, start_tool
from mmengine.device import get_device

from transmamba_mm.arena import read_grid, run_grid, write_report

GRID = f"""
title = 'tiny'
seeds = [0]
_small = dict(type='transmamba.FractionDataset', fraction=0.05)
_config = {str(CONFIGS)!r} + '/quickstart/{{}}_digits.py'
options = {{
    'train_cfg.max_epochs': 2,
    'train_cfg.val_interval': 1,
    'default_hooks.checkpoint.interval': 1,
    'train_dataloader.dataset.fraction': 0.05,
    'val_dataloader.dataset': dict(
        _delete_=True,
        type='transmamba.FractionDataset',
        fraction=0.05,
        dataset=dict(type='transmamba.Digits', split='test', pipeline=[
            dict(type='Resize', scale=(16, 16)), dict(type='PackInputs')]),
    ),
}}
contestants = [
    dict(name='teacher', config=_config.format('deit')),
    dict(
        name='distilled',
        config=_config.format('transmamba_deit_pmamba'),
        needs={{'model.teacher_ckpt': 'teacher'}},
    ),
]
"""


def traces(folder):
    """How far the cells have come: checkpoints and results."""
    names = ('*/*/last_checkpoint', '*/*/epoch_*.pth', '*/result.json')
    return sum(len(list(folder.glob(name))) for name in names)


@pytest.mark.skipif(get_device() != 'cpu', reason='equal on a CPU')
def test_kills_do_not_change_the_leaderboard(tmp_path):
    path, draw = tmp_path / 'grid.py', random.Random(0)
    path.write_text(GRID)
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    tool = (TOOLS / 'arena.py', 'run', path, '--work-dir', killed)
    for _ in range(2):
        process, before = start_tool(tmp_path, *tool), traces(killed)
        while process.poll() is None and traces(killed) < before + 2:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    grid, boards = read_grid(path), []
    for folder in (killed, whole):
        assert run_grid(grid, folder) == []
        boards.append(write_report(grid, folder))
    times = [board.pop('measured') for board in boards]
    assert boards[0] == boards[1] and times[0] != times[1]
    row = boards[0]['contestants']['distilled']
    assert [point['images'] for point in row['curve']] == [66, 132]
    assert row['teacher_images'] == 132
    # What is finished can be shown without its configs.
    path.unlink()
    board = write_report(read_grid(killed), killed)
    assert board['contestants'] == boards[0]['contestants']
