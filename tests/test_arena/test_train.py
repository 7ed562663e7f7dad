# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Real training: what it costs, and that it continues to the same result."""

import pytest
from helpers import CONFIGS
from mmengine.config import Config
from mmengine.device import get_device

from transmamba_mm.arena.train import train_config

METRIC = 'accuracy/top1'
TIMES = ('seconds', 'cpu_seconds', 'energy_kwh', 'co2_kg')


class Interrupted(Exception):
    pass


def interrupt(epoch, epochs):
    raise Interrupted


def small(folder, name, **more):
    """Two epochs of the quickstart's student, on 66 images."""
    cfg = Config.fromfile(CONFIGS / 'quickstart/pmamba_scratch_digits.py')
    cfg.merge_from_dict(
        {
            'train_cfg.max_epochs': 2,
            'train_dataloader.dataset.fraction': 0.05,
            'experiment_name': f'{folder}-{name}-{len(more)}',
            'work_dir': str(folder / name),
            **more,
        }
    )
    return cfg


def deterministic(costs):
    """Without times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in costs]


@pytest.mark.skipif(get_device() != 'cpu', reason='equal on a CPU')
def test_training_continues_to_the_same_curves(tmp_path):
    told = []
    whole = train_config(
        small(tmp_path, 'whole'), lambda *args: told.append(args), METRIC
    )
    assert told == [(1, 2), (2, 2)]
    assert [epoch for epoch, _ in whole['accuracy']] == [1, 2]
    # Interrupted between the first checkpoint and its validation.
    with pytest.raises(Interrupted):
        train_config(small(tmp_path, 'part'), interrupt, METRIC)
    newest = str(tmp_path / 'part' / 'epoch_1.pth')
    found = train_config(
        small(tmp_path, 'part', resume=True, load_from=newest),
        lambda *args: None,
        METRIC,
    )
    assert found['accuracy'] == whole['accuracy']
    assert deterministic(found['costs']) == deterministic(whole['costs'])
    # And between the last one and its validation.
    for path in (tmp_path / 'whole').glob('*/vis_data/scalars.json'):
        path.unlink()
    newest = str(tmp_path / 'whole' / 'epoch_2.pth')
    found = train_config(
        small(tmp_path, 'whole', resume=True, load_from=newest),
        lambda *args: None,
        METRIC,
    )
    assert found['accuracy'] == whole['accuracy'][-1:]
    assert found['costs'] == whole['costs']


def test_costs_are_summed_over_epochs(tmp_path):
    costs = train_config(small(tmp_path, 'whole'), print, METRIC)['costs']
    assert deterministic(costs) == [
        dict(epoch=1, images=66, teacher_images=0),
        dict(epoch=2, images=132, teacher_images=0),
    ]
    for key in costs[0].keys() & set(TIMES):
        assert 0 < costs[0][key] < costs[1][key]


def test_what_is_not_measured_is_told_at_the_first_validation(tmp_path):
    with pytest.raises(ValueError, match='accuracy/top1, not mIoU, which'):
        train_config(small(tmp_path, 'whole'), print, 'mIoU')
