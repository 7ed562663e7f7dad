# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which runs a grid has, and in which order."""

import pytest

from transmamba_mm.arena import Contestant, Grid, Search, read_grid
from transmamba_mm.arena.grid import expand, stem


def keys(cells):
    return [cell.key for cell in cells]


def test_cells_go_seed_by_seed_and_teachers_first():
    teacher = Contestant('teacher', 't.py', seeds=[7, 8])
    student = Contestant('a', 'a.py', needs={'model.teacher_ckpt': 'teacher'})
    grid = Grid('', [teacher, student, Contestant('b', 'b.py')], range(3))
    assert keys(grid.cells()) == [
        *('teacher_seed7', 'a_seed0', 'b_seed0'),
        *('teacher_seed8', 'a_seed1', 'b_seed1'),
        *('a_seed2', 'b_seed2'),
    ]
    assert keys(grid.cells_of(student)) == ['a_seed0', 'a_seed1', 'a_seed2']
    last = grid.cells_of(student)[-1]
    (needed,) = grid.needs(last).items()
    assert needed == ('model.teacher_ckpt', grid.cells_of(teacher)[0])
    assert grid.needs(grid.cells_of(teacher)[1]) == {}


SEARCH = Search('lr', [0.1, 0.2], [9], {'val': 'held-out'})


def test_searches_come_first_and_waves_one_after_the_other():
    contestants = [
        Contestant('teacher', 't.py', seeds=[0], search=[]),
        Contestant('a', 'a.py', needs={'ckpt': 'teacher'}),
        Contestant('late', 'b.py', wave=1),
        Contestant('b', 'b.py', search=[0.3]),
    ]
    grid = Grid('', contestants, range(2), search=SEARCH)
    assert keys(grid.cells()) == [
        *('teacher_seed0', 'a@0.1_seed9', 'a@0.2_seed9', 'b@0.3_seed9'),
        *('a_seed0', 'b_seed0', 'a_seed1', 'b_seed1'),
        *('late@0.1_seed9', 'late@0.2_seed9', 'late_seed0', 'late_seed1'),
    ]


def test_what_a_cell_waits_for_comes_before_it_in_any_wave():
    contestants = [
        Contestant('teacher', 't.py', wave=1),
        Contestant('a', 'a.py', needs={'ckpt': 'teacher'}, search=[]),
    ]
    grid = Grid('', contestants, [0], search=SEARCH)
    assert keys(grid.cells()) == [
        *('teacher@0.1_seed9', 'teacher@0.2_seed9', 'teacher_seed0'),
        'a_seed0',
    ]


@pytest.mark.parametrize(
    ('contestants', 'settings', 'said'),
    [
        ([Contestant('a', '', search=[1])], {}, 'but the grid does not'),
        (
            [Contestant('a', '')],
            dict(search=Search('lr', [], [0], {})),
            'needs values and seeds',
        ),
    ],
)
def test_no_search(contestants, settings, said):
    with pytest.raises(ValueError, match=said):
        Grid('', contestants, [0], **settings)


@pytest.mark.parametrize(
    ('contestants', 'pairs', 'said'),
    [
        ([Contestant('a/b', '')], [], "'a/b' is no folder name"),
        ([Contestant('a', ''), Contestant('a', '')], [], 'there twice'),
        ([Contestant('a', '', needs={'k': 'b'})], [], "'b'.*not before it"),
        ([Contestant('a', '', needs={'k': 'a'})], [], "'a'.*not before it"),
        ([Contestant('a', '')], [('a', 'c')], "'c'.*do not take part"),
        ([Contestant('a', '', seeds=[])], [], "'a' has no seed"),
    ],
)
def test_refused(contestants, pairs, said):
    with pytest.raises(ValueError, match=said):
        Grid('', contestants, [0], pairs=pairs)


def test_a_grid_is_a_config(tmp_path):
    path = tmp_path / 'grid.py'
    path.write_text("""
_config = 'student.py'
title = 'two of a kind'
seeds = [3, 4, 5]
options = {'train_cfg.max_epochs': 2}
contestants = [
    dict(name='one', config=_config, options={'model.alpha': 0.3}),
    dict(name='two', config=_config, needs={'load_from': 'one'}, seeds=[0]),
]
pairs = [('one', 'two')]
metric = 'mIoU'
search = dict(key='lr', values=[0.1, 0.2], seeds=[9], options=dict(val='x'))
""")
    one = Contestant('one', 'student.py', {'model.alpha': 0.3})
    two = Contestant(
        'two', 'student.py', needs={'load_from': 'one'}, seeds=[0]
    )
    grid = Grid(
        'two of a kind',
        [one, two],
        [3, 4, 5],
        {'train_cfg.max_epochs': 2},
        [('one', 'two')],
        search=Search('lr', [0.1, 0.2], [9], {'val': 'x'}),
        metric='mIoU',
    )
    assert read_grid(str(path)) == grid
    assert list(read_grid(str(path), 2).seeds) == [3, 4]


def test_contestants_are_multiplied_by_axes():
    axes = {
        'share': {'25': {'fraction': 0.25}, '50': {'fraction': 0.5}},
        'size': {'s': {}, 'l': {'width': 9}},
    }
    teacher, *students = expand(
        [
            dict(name='teacher', config='t_{size}.py', axes=['size']),
            dict(
                name='a',
                config='a_{size}.py',
                needs={'ckpt': 'teacher'},
                options={'fraction': 7, 'lr': 1},
            ),
        ],
        axes,
    )[1:]
    assert (teacher.name, teacher.variant) == ('teacher-l', 'l')
    assert (teacher.config, teacher.options) == ('t_l.py', {'width': 9})
    assert [each.name for each in students] == [
        *('a-25-s', 'a-25-l', 'a-50-s', 'a-50-l')
    ]
    last = students[-1]
    assert last.config == 'a_l.py' and last.needs == {'ckpt': 'teacher-l'}
    assert last.options == {'fraction': 7, 'width': 9, 'lr': 1}
    assert (last.variant, stem(last)) == ('50-l', 'a')
    with pytest.raises(ValueError, match="'a' has unknown axes"):
        expand([dict(name='a', config='', axes=['sice'])], axes)
    no_such = dict(name='a', config='', needs={'ckpt': 'teacher'})
    with pytest.raises(ValueError, match='not before it'):
        Grid('', expand([no_such], axes), [0])


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        (dict(references=['b']), "reference 'b'"),
        (dict(paper={'b': ('Table 5', 'logits')}), "'b'.*paper do not"),
    ],
)
def test_what_the_report_names_takes_part(settings, said):
    with pytest.raises(ValueError, match=said):
        Grid('', [Contestant('a', '')], [0], **settings)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ("title = ''\nseeds = [0]", 'no grid: it has no .*contestants'),
        (
            "title = ''\nseeds = [0]\ncontestants = []\nreference = []",
            'reference does nothing: is it references',
        ),
        (
            "title = ''\nseeds = [0]\ncontestants = [dict(name='a')]",
            "no .'config'.",
        ),
        (
            "title = ''\nseeds = [0]\n"
            "contestants = [dict(name='a', config='a', option={})]",
            "unknown .'option'.",
        ),
    ],
)
def test_mistakes_in_a_grids_file(text, said, tmp_path):
    path = tmp_path / 'grid.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_grid(str(path))


def test_a_seed_twice():
    with pytest.raises(ValueError, match=r'a seed twice: \[0, 0\]'):
        Grid('', [Contestant('a', '')], [0, 0])
