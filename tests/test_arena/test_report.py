# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is said of results, from their files alone."""

import json

from transmamba_mm.arena import Contestant, Grid, write_report
from transmamba_mm.arena.report import summarise, table
from transmamba_mm.arena.results import RESULT_FILE, Result, write_json

GRID = Grid(
    'digits',
    [
        Contestant('teacher', '', seeds=[0]),
        Contestant('old', '', needs={'model.teacher_ckpt': 'teacher'}),
        Contestant('new', ''),
        Contestant('late', ''),
    ],
    range(3),
    pairs=[('new', 'old'), ('new', 'late'), ('old', 'teacher')],
)


def result(name, seed, final, **curves):
    return Result(
        name, seed, 'digest', [(1, 10.0), (2, final)], curves.get('seen', {})
    )


def some_results():
    # Paired, the seeds' own level does not count.
    found = [result('old', seed, 70 + 5.0 * seed) for seed in range(3)]
    found += [result('new', seed, 90 + 5.0 * seed) for seed in range(3)]
    return [result('teacher', 0, 71.0), *found]


def test_table_states_means_and_differences():
    summary = summarise(GRID, some_results())
    lines = table(summary).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[:4]}
    assert rows['teacher'] == ['71.0', '1']  # of one run no deviation
    assert rows['old'] == ['75.0', '±', '5.0', '3']
    assert 'late' not in rows
    assert [line.rpartition('  ')[2] for line in lines if ' - ' in line] == [
        '+20.0 ± 0.0',
        '-1.0 (one seed)',
    ]
    assert any('95 % interval' in line for line in lines)


def test_what_is_not_separable_is_called_so():
    finals = {'old': (70.0, 71.0, 72.0), 'new': (71.0, 70.0, 74.0)}
    summary = summarise(
        GRID,
        [result(n, s, x) for n, v in finals.items() for s, x in enumerate(v)],
    )
    (difference,) = summary['differences']
    assert difference['pair'] == ('new', 'old')
    assert difference['mean'] < difference['interval']
    assert 'not separable' in difference['text']
    assert 'not separable' in table(summary)


def test_report_needs_nothing_but_the_files(tmp_path, capsys):
    """It can be made again, and of an unfinished grid."""
    seen = {f'{side}/layer0': [(5, 0.1), (9, 0.2)] for side in ('up', 'down')}
    runs = [*some_results(), result('late', 1, 40.0, seen=seen)]
    # Killed at its first validation, and resumed.
    runs[-1].accuracy.pop(0)
    for run in runs:
        folder = tmp_path / f'{run.name}_seed{run.seed}'
        write_json(folder / RESULT_FILE, vars(run))
    summary = write_report(GRID, tmp_path)
    assert table(summary) in capsys.readouterr().out
    assert summary['contestants']['late'] == dict(mean=40.0, std=0.0, runs=1)
    names = ['results.json', 'summary.json', 'accuracy.png', 'similarity.png']
    content = [(tmp_path / name).read_bytes() for name in names]
    assert all(data.startswith(b'\x89PNG') for data in content[2:])
    written = json.loads(content[1])
    assert written['contestants'] == summary['contestants']
    assert [run['name'] for run in json.loads(content[0])] == [
        *(run.name for run in runs)
    ]
    for name in names:
        (tmp_path / name).unlink()
    write_report(GRID, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == content
