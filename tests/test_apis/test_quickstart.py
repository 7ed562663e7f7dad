# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The quickstart, shortened, through its own command line."""

import json

import pytest
from helpers import ForkedTool

from transmamba_mm.apis import quickstart
from transmamba_mm.arena.plan import plan_jobs

SHORT = dict(seeds=1, teacher_epochs=2, student_epochs=2)


def test_students_get_the_teacher_and_the_epochs(tmp_path):
    jobs = plan_jobs(quickstart.make_grid(2, 7, 3), tmp_path)
    teacher, *students = jobs
    assert teacher.cell.key == 'teacher_seed0' and len(students) == 10
    for job in students:
        cfg, name = job.cfg, job.cell.contestant.name
        assert cfg.randomness.seed == job.cell.seed
        text = json.dumps(cfg.to_dict())
        assert 'epoch_60.pth' not in text, 'the path that the config has'
        assert (teacher.digest in text) == (name != 'scratch')
    for job, epochs in ((teacher, 7), (students[0], 3)):
        assert job.cfg.train_cfg.max_epochs == epochs
        assert job.cfg.param_scheduler[0].end == epochs


def test_command_line_ends_with_json(tmp_path, monkeypatch):
    short = '--seeds 1 --teacher-epochs 2 --student-epochs 2 --workers 2'
    tool = ForkedTool(
        tmp_path, 'quickstart', *short.split(), '--out-dir', tmp_path
    )
    said = tool.wait()
    last = json.loads(said.splitlines()[-1])
    assert tuple(last) == quickstart.REPORTED
    assert all(0 <= value <= 100 for value in last.values())
    assert 'left' in said  # progress with an estimate
    for name in ('accuracy.png', 'similarity.png'):
        assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')
    runs = json.loads((tmp_path / 'results.json').read_text())
    assert len(runs) == 6
    seen = next(r for r in runs if r['name'] == 'paper')['similarity']
    assert len(seen) == 4 * 4  # directions times layers
    # All is finished by now.
    assert quickstart.quickstart(str(tmp_path), **SHORT) == last


def test_failed_run_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, 'run_grid', lambda *_: ['teacher_seed0'])
    with pytest.raises(SystemExit, match='no result: teacher_seed0'):
        quickstart.quickstart(str(tmp_path), **SHORT)


def test_retrieval_ends_with_json(tmp_path, monkeypatch):
    pytest.importorskip('av')
    pytest.importorskip('regex')
    monkeypatch.chdir(tmp_path)
    short = '--seeds 1 --teacher-epochs 1 --student-epochs 1 --clips 40'
    tool = ForkedTool(
        tmp_path,
        'quickstart_retrieval',
        *(*short.split(), '--workers', '1', '--out-dir', tmp_path / 'out'),
    )
    last = json.loads(tool.wait().splitlines()[-1])
    grid = quickstart.make_retrieval_grid(1, 1, 1)
    assert list(last) == [each.name for each in grid.contestants]
    assert all(0 <= value <= 100 for value in last.values())
    board = json.loads((tmp_path / 'out' / 'leaderboard.json').read_text())
    assert board['metric'] == 't2v/R@1'
    images = {x: row['images'] for x, row in board['contestants'].items()}
    assert images.pop('teacher') == 40 and {*images.values()} == {10}


def test_vqa_ends_with_json(tmp_path, monkeypatch):
    pytest.importorskip('transformers')
    monkeypatch.chdir(tmp_path)
    short = '--seeds 1 --teacher-epochs 1 --student-epochs 1 --images 256'
    tool = ForkedTool(
        tmp_path,
        'quickstart_vqa',
        *(*short.split(), '--workers', '1', '--out-dir', tmp_path / 'out'),
    )
    last = json.loads(tool.wait().splitlines()[-1])
    grid = quickstart.make_vqa_grid(1, 1, 1)
    assert list(last) == [each.name for each in grid.contestants]
    assert all(0 <= value <= 100 for value in last.values())
    board = json.loads((tmp_path / 'out' / 'leaderboard.json').read_text())
    assert board['metric'] == 'vqa/accuracy'
    images = {x: row['images'] for x, row in board['contestants'].items()}
    assert images.pop('teacher') == 256 and {*images.values()} == {64}
