# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is read from logs and from the files of finished cells."""

import json

from transmamba_mm.arena import Contestant, Grid
from transmamba_mm.arena.results import (
    RESULT_FILE,
    Result,
    choose,
    read_curves,
    read_result,
    read_results,
    write_json,
)

METRIC = 'accuracy/top1'


def write_log(work_dir, name, *entries, cut=''):
    path = work_dir / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join([*map(json.dumps, entries), cut]))


def test_curves_keep_epochs_and_similarities(tmp_path):
    write_log(
        tmp_path,
        '20260101_000000',
        dict(loss=1.0, step=1),
        {
            'loss_transmamba/similarities/raster/layer00': 0.5,
            'loss_transmamba/weights/raster/layer00': 1.0,
            'step': 5,
        },
        {'accuracy/top1': 40.0, 'step': 1},
        {'accuracy/top1': 60.0, 'step': 2},
    )
    assert read_curves(tmp_path, METRIC) == dict(
        accuracy=[(1, 40.0), (2, 60.0)],
        similarity={'raster/layer00': [(5, 0.5)]},
    )


def test_curves_of_a_resumed_run_are_joined(tmp_path):
    first = [{'accuracy/top1': 10.0 * i, 'step': i} for i in (1, 2)]
    again = [{'accuracy/top1': 10.0 * i + 1, 'step': i} for i in (2, 3)]
    write_log(tmp_path, '20260101_000000', *first, cut='{"accuracy/top1": 1')
    write_log(tmp_path, '20260101_000100', *again)
    found = read_curves(tmp_path, METRIC)
    assert found['accuracy'] == [(1, 10.0), (2, 21.0), (3, 31.0)]


def test_results_are_found_in_order(tmp_path):
    grid = Grid('', [Contestant('b', ''), Contestant('a', '')], [1, 0])
    assert read_results(grid, tmp_path) == []
    for name, seed in (('a', 0), ('b', 0), ('b', 1), ('c', 0)):
        result = Result(name, seed, 'digest', [[1, 50.0]], {})
        write_json(tmp_path / f'{name}_seed{seed}' / RESULT_FILE, vars(result))
    found = [(r.name, r.seed) for r in read_results(grid, tmp_path)]
    assert found == [('b', 1), ('b', 0), ('a', 0)]
    assert read_result(tmp_path / 'a_seed0').final == 50.0


def test_what_diverged_is_not_chosen():
    nan = float('nan')
    choice = choose([(1, 5.0), (2, 7.0), (1, 9.0), (4, 99.0), (4, nan)])
    assert choice.value == 1 and choice.at_edge
    assert choice.scores[:2] == [(1, 7.0), (2, 7.0)]
