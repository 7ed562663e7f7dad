# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is said of results, from their files alone."""

import json

import pytest

from transmamba_mm.arena import Contestant, Grid, beside_paper, write_report
from transmamba_mm.arena.grid import expand
from transmamba_mm.arena.leaderboard import make_leaderboard
from transmamba_mm.arena.paper import TABLES
from transmamba_mm.arena.results import (
    RESULT_FILE,
    Choice,
    Result,
    read_result,
    write_json,
)
from transmamba_mm.arena.tables import as_markdown, as_page, as_text, tabulate

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


def costs_of(epochs, images=100):
    """Sums, as they are stored; the teacher saw half of the images."""
    return [
        dict(
            epoch=epoch,
            images=images * epoch,
            teacher_images=images * epoch // 2,
            seconds=2.0 * epoch,
            cpu_seconds=1.5 * epoch,
        )
        for epoch in range(1, epochs + 1)
    ]


def result(name, seed, final, before=10.0, **more):
    return Result(
        name,
        seed,
        'digest',
        [(1, before), (2, final)],
        more.pop('seen', {}),
        **{'costs': costs_of(2), 'device': 'cpu', **more},
    )


def some_results():
    # Paired, the seeds' own level does not count.
    found = [result('old', seed, 70 + 5.0 * seed) for seed in range(3)]
    found += [result('new', seed, 90 + 5.0 * seed) for seed in range(3)]
    return [result('teacher', 0, 71.0), *found]


def test_table_states_means_and_differences():
    board = make_leaderboard(GRID, some_results())
    lines = as_text(board).splitlines()
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
    board = make_leaderboard(
        GRID,
        [result(n, s, x) for n, v in finals.items() for s, x in enumerate(v)],
    )
    (difference,) = board['differences']
    assert difference['pair'] == ['new', 'old']
    assert difference['mean'] < difference['interval']
    assert 'not separable' in difference['text']
    assert 'not separable' in as_text(board)


def compared(results, choices=None):
    grid = Grid(
        'a <b> & c',
        [
            Contestant('teacher', '', seeds=[0]),
            Contestant('scratch', ''),
            Contestant('new', '', needs={'ckpt': 'teacher'}),
        ],
        range(2),
        references=['scratch'],
    )
    return make_leaderboard(grid, results, choices)


def test_images_until_the_final_result_of_a_reference():
    """Seed by seed, and none where a seed has not reached it."""
    results = [result('scratch', seed, 40.0 + seed) for seed in range(2)]
    results += [
        result('new', 0, 60.0, before=40.0),
        result('new', 1, 41.0, before=40.9),
    ]
    new = compared(results)['contestants']['new']
    assert new['images'] == 200 and new['teacher_images'] == 100
    found = new['against']['scratch']
    assert (found['reached'], found['epochs'], found['images']) == (
        2,
        1.5,
        150,
    )
    assert found['difference']['mean'] == 10.0
    results[-1] = result('new', 1, 40.9)
    found = compared(results)['contestants']['new']['against']['scratch']
    assert (found['reached'], found['epochs'], found['images']) == (
        *(1, None, None),
    )
    # Results of earlier versions say nothing of images.
    results[-1] = result('new', 1, 41.0, costs=[], device='')
    found = compared(results)['contestants']['new']['against']['scratch']
    assert (found['reached'], found['epochs'], found['images']) == (
        *(2, 1.5, None),
    )


def test_times_are_in_their_own_part():
    fast = some_results()
    slow = [
        Result(**{**vars(run), 'costs': [dict(row) for row in run.costs]})
        for run in fast
    ]
    for run in slow:
        for row in run.costs:
            row.update(seconds=99.0 * row['epoch'], cpu_seconds=7.0)
    boards = [make_leaderboard(GRID, runs) for runs in (fast, slow)]
    measured = [board.pop('measured') for board in boards]
    assert boards[0] == boards[1] and measured[0] != measured[1]
    assert measured[0]['new']['seconds'] == 4.0
    assert measured[1]['new']['seconds_by_epoch'] == [[1, 99.0], [2, 198.0]]


def test_a_choice_at_the_edge_is_warned_of():
    results = [result('scratch', 0, 40.0), result('new', 0, 50.0, value=0.2)]
    tried = [(0.1, 30.0), (0.2, 45.0)]
    board = compared(results, {'new': Choice(0.2, tried)})
    assert board['contestants']['new']['chosen']['at_edge']
    line = 'new chose 0.2 (0.1: 30.0, 0.2: 45.0), AT THE EDGE'
    assert line in as_text(board) and line in as_markdown(board)
    board = compared(results, {'new': Choice(0.2, [*tried, (0.3, 1.0)])})
    assert 'EDGE' not in as_text(board) + as_markdown(board)


def test_markdown_and_page_show_the_same_table():
    results = [result('scratch', s, 40.0 + s) for s in range(2)]
    results += [result('new', s, 60.0 + s) for s in range(2)]
    board = compared(results)
    titles, rows = tabulate(board)
    assert 'energy (Wh)' not in titles and 'images to reach scratch' in titles
    markdown, page = as_markdown(board), as_page(board, [])
    for text in (*titles, *(entry.text for row in rows for entry in row)):
        assert text in markdown and text in page
    assert '<h1>a &lt;b&gt; &amp; c</h1>' in page
    assert page.count('data-order') == 2 * (len(titles) - 1) - 3 + 1
    for elsewhere in ('http:', 'https:', 'src="/', '<link'):
        assert elsewhere not in page


def test_references_are_of_the_same_variant():
    contestants = expand(
        [dict(name='scratch', config=''), dict(name='new', config='')],
        {'share': {'25': {}, '50': {}}},
    )
    grid = Grid('', contestants, [0], references=['scratch'])
    finals = {'scratch-25': 1, 'scratch-50': 2, 'new-25': 11, 'new-50': 22}
    board = make_leaderboard(
        grid, [result(n, 0, x) for n, x in finals.items()]
    )
    found = {
        name: row['against']['scratch']['difference']['mean']
        for name, row in board['contestants'].items()
        if row['against']
    }
    assert found == {'new-25': 10, 'new-50': 20}
    assert 'new-50 - scratch ' in as_text(board)


def test_beside_the_paper():
    grid = Grid(
        '',
        [Contestant('new', ''), Contestant('old', '')],
        [0],
        paper={'new': ['Table 6', '25 %'], 'old': ['Table 5', 'logits']},
    )
    board = make_leaderboard(grid, [result('new', 0, 61.25)])
    new, old = beside_paper(grid, board).splitlines()[1:3]
    assert new.split() == ['new', '61.2', '83.20', *['Table', '6:', '25', '%']]
    assert 'not run' in old and '84.36' in old
    with pytest.raises(ValueError, match='mirrors no table'):
        beside_paper(GRID, board)
    wrong = Grid('', grid.contestants, [0], paper={'new': ['Table 6', '1 %']})
    with pytest.raises(ValueError, match="no '1 %' in 'Table 6'"):
        beside_paper(wrong, board)
    assert TABLES['Table 2, ImageNet-1k']['VMamba + TransMamba'] == 82.90


@pytest.mark.parametrize(
    'content',
    ['{"name": "a", "se', '[]', '{}', '{"name": "a", "score": 1}'],
)
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    path = tmp_path / RESULT_FILE
    path.write_text(content)
    with pytest.raises(ValueError, match=f'{path} is no result of the arena'):
        read_result(tmp_path)
    write_json(path, dict(vars(result('a', 0, 1.0)), accuracy=[]))
    with pytest.raises(ValueError, match='delete it'):
        read_result(tmp_path)


def test_results_of_earlier_versions_are_read(tmp_path):
    """They have neither a value nor costs."""
    old = dict(
        name='a', seed=0, digest='d', accuracy=[[1, 5.0]], similarity={}
    )
    write_json(tmp_path / RESULT_FILE, old)
    assert read_result(tmp_path) == Result('a', 0, 'd', [[1, 5.0]], {})
    board = make_leaderboard(
        Grid('', [Contestant('a', '')], [0]), [read_result(tmp_path)]
    )
    assert board['contestants']['a']['curve'] == [
        dict(epoch=1, images=None, mean=5.0, std=0.0)
    ]


def test_report_needs_nothing_but_the_files(tmp_path, capsys):
    """It can be made again, and of an unfinished grid."""
    seen = {f'{side}/layer0': [(5, 0.1), (9, 0.2)] for side in ('up', 'down')}
    runs = [*some_results(), result('late', 1, 40.0, seen=seen)]
    # Killed at its first validation, and resumed.
    runs[-1].accuracy.pop(0)
    for run in runs:
        folder = tmp_path / f'{run.name}_seed{run.seed}'
        write_json(folder / RESULT_FILE, vars(run))
    board = write_report(GRID, tmp_path)
    assert as_text(board) in capsys.readouterr().out
    assert board['contestants']['late']['mean'] == 40.0
    names = ['results.json', 'leaderboard.json']
    names += ['accuracy.png', 'similarity.png']
    names += ['leaderboard.md', 'leaderboard.html']
    content = [(tmp_path / name).read_bytes() for name in names]
    assert all(data.startswith(b'\x89PNG') for data in content[2:4])
    written = json.loads(content[1])
    assert written == board
    assert [run['name'] for run in json.loads(content[0])] == [
        *(run.name for run in runs)
    ]
    for name in names:
        (tmp_path / name).unlink()
    write_report(GRID, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == content
