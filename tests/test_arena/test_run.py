# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Cells that finish, fail, are interrupted, and change."""

import fcntl
import math
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import start_tool

from transmamba_mm.arena import (
    Contestant,
    Grid,
    Search,
    run,
    run_grid,
    run_jobs,
    write_report,
)
from transmamba_mm.arena.plan import digests_of, jobs_of, plan_jobs
from transmamba_mm.arena.results import (
    read_choices,
    read_result,
    read_results,
)
from transmamba_mm.engine import NonFiniteError
from transmamba_mm.utils.cli import UsageError

CONFIG = """
train_cfg = dict(max_epochs=2)
randomness = dict(seed=0)
model = dict(teacher_ckpt=None)
val_dataloader = dict()
"""


def note_attempt(cfg):
    with open(Path(cfg.work_dir).parent / 'attempts', 'a') as file:
        file.write(f'{cfg.get("load_from")}\n')


def attempts(folder):
    path = folder / 'attempts'
    return path.read_text().split() if path.exists() else []


def save_checkpoint(cfg):
    path = Path(cfg.work_dir) / 'epoch_1.pth'
    path.write_text('weights')
    (path.parent / 'last_checkpoint').write_text(str(path))


def pretend(cfg, report, metric):
    """Stands in for training; what it measures tells how it was run."""
    start = time.monotonic()
    note_attempt(cfg)
    if cfg.get('custom_imports'):
        assert 'only_of_this_config' in sys.modules
    if cfg.model.get('fails'):
        print('on the way')
        raise ValueError('the loss is nan')
    teacher = cfg.model.teacher_ckpt
    assert teacher is None or Path(teacher).read_text() == 'weights'
    save_checkpoint(cfg)
    if cfg.model.get('dies') and cfg.get('load_from') is None:
        os.kill(os.getpid(), signal.SIGKILL)
    assert cfg.get('resume', False) == (cfg.get('load_from') is not None)
    report(2, 2)
    time.sleep(cfg.model.get('pause', 0))
    return dict(
        accuracy=[
            (os.getpid(), cfg.randomness.seed),
            (torch.get_num_threads(), start),
            (2, time.monotonic()),
        ],
        similarity={},
    )


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return str(path)


def pair(config, teacher=(), student=(), seeds=(0,)):
    """A grid of a teacher and its student, with options of theirs."""
    needs = {'model.teacher_ckpt': 'teacher'}
    return Grid(
        'pair',
        [
            Contestant('teacher', config, dict(teacher), seeds=[0]),
            Contestant('student', config, dict(student), needs),
        ],
        seeds,
    )


def test_each_cell_has_a_process_with_one_thread(tmp_path, config, capsys):
    grid = Grid(
        '',
        [Contestant('a', config), Contestant('b', config)],
        range(2),
        options={'model.pause': 0.3},
    )
    assert run_grid(grid, tmp_path, workers=2, train=pretend) == []
    results = read_results(grid, tmp_path)
    assert [result.accuracy[0][1] for result in results] == [0, 1, 0, 1]
    assert len({result.accuracy[0][0] for result in results}) == 4
    assert {result.accuracy[1][0] for result in results} == {1}
    spans = [(run.accuracy[1][1], run.accuracy[2][1]) for run in results]
    most = max(sum(a <= t < b for a, b in spans) for t, _ in spans)
    assert most <= 2
    out = capsys.readouterr().out
    assert '[100 %]' in out and 'left' in out and 'finished' not in out


def test_finished_cells_are_not_run_again(tmp_path, config, capsys):
    assert run_grid(pair(config), tmp_path, train=pretend) == []
    more = pair(config, seeds=(0, 1))
    assert run_grid(more, tmp_path, train=pretend) == []
    assert '2 of 3 cells are finished' in capsys.readouterr().out
    assert run_grid(more, tmp_path, train=pretend) == []
    for cell in more.cells():
        assert attempts(tmp_path / cell.key) == ['None']


def test_changed_config_runs_again(tmp_path, config, capsys):
    """From the start, and so does what was made with it."""
    changed = [
        pair(config, student=[('model.lr', 2)]),
        pair(config, [('model.lr', 3)]),
    ]
    run_grid(pair(config), tmp_path, train=pretend)
    before = read_result(tmp_path / 'student_seed0').digest
    assert run_grid(changed[0], tmp_path, train=pretend) == []
    assert read_result(tmp_path / 'student_seed0').digest != before
    assert attempts(tmp_path / 'teacher_seed0') == ['None']
    assert attempts(tmp_path / 'student_seed0') == ['None'] * 2
    out = capsys.readouterr().out
    assert 'student_seed0: its config has changed, it runs again' in out
    assert 'teacher_seed0: its' not in out
    assert run_grid(changed[1], tmp_path, train=pretend) == []
    assert attempts(tmp_path / 'teacher_seed0') == ['None'] * 2
    assert attempts(tmp_path / 'student_seed0') == ['None'] * 3
    # No result remains that is of neither config.
    bad = pair(config, student=[('model.fails', True)])
    assert run_grid(bad, tmp_path, train=pretend) == ['student_seed0']
    assert read_result(tmp_path / 'student_seed0') is None
    # The first one's checkpoint is still there to continue from.
    assert run_grid(pair(config), tmp_path, train=pretend) == []
    assert read_result(tmp_path / 'student_seed0').digest == before
    assert attempts(tmp_path / 'student_seed0')[-1].endswith('epoch_1.pth')


def test_digest_is_of_the_content(tmp_path, config):
    elsewhere = tmp_path / 'elsewhere' / 'copy.py'
    elsewhere.parent.mkdir()
    elsewhere.write_text('# as it was\n' + CONFIG)
    here = plan_jobs(pair(config), tmp_path)
    there = plan_jobs(pair(str(elsewhere)), elsewhere.parent)
    assert [job.digest for job in here] == [job.digest for job in there]
    assert len({job.digest for job in here}) == 2


def test_what_no_result_depends_on_does_not_change_the_digest(
    tmp_path, config
):
    """Variables of the config, loggers and hooks that only watch."""

    def digest(**options):
        grid = Grid('', [Contestant('a', config, options)], [0])
        return plan_jobs(grid, tmp_path)[0].digest

    plain = digest()
    watching = dict(logger=dict(interval=9), finite=dict(type='F'))
    assert digest(default_hooks=watching) == plain
    assert digest(log_level='DEBUG', method=dict(tau=3)) == plain
    assert digest(default_hooks=dict(epoch_seed=dict(type='E'))) != plain
    assert digest(train_cfg=dict(max_epochs=3)) != plain


def test_interrupted_cell_continues(tmp_path, config, capsys):
    """Also where its folder has another name by then."""
    grid, first = pair(config, [('model.dies', True)]), tmp_path / 'first'
    assert run_grid(grid, first, train=pretend) == [
        *('teacher_seed0', 'student_seed0')
    ]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith('error: teacher_seed0 failed with exit code -9')
    assert said[1:] == [
        'error: student_seed0 is left out, as it needs one that failed'
    ]
    second = first.rename(tmp_path / 'second')
    assert run_grid(grid, second, train=pretend) == []
    (job, _) = plan_jobs(grid, second)
    assert attempts(job.folder) == ['None', job.checkpoint()]


def test_failing_cell_is_named_and_others_go_on(tmp_path, config, capsys):
    contestants = [
        Contestant('bad', config, {'model.fails': True}, seeds=[0]),
        Contestant('good', config),
    ]
    grid = Grid('', contestants, range(2))
    failed = run_grid(grid, tmp_path, workers=1, train=pretend)
    assert failed == ['bad_seed0']
    assert [r.name for r in read_results(grid, tmp_path)] == ['good'] * 2
    log = tmp_path / 'bad_seed0' / 'console.log'
    (said,) = capsys.readouterr().err.splitlines()
    assert said == (
        'error: bad_seed0 failed with exit code 1: ValueError: the loss is '
        f'nan; see {log}'
    )
    assert 'on the way' in log.read_text()
    # It is tried again, the others are not.
    assert run_grid(grid, tmp_path, train=pretend) == ['bad_seed0']
    assert len(attempts(tmp_path / 'bad_seed0')) == 2
    assert len(attempts(tmp_path / 'good_seed0')) == 1


def fail(cfg, report, metric):
    raise RuntimeError


def test_lost_checkpoint_is_made_again_when_needed(tmp_path, config):
    run_grid(pair(config), tmp_path, train=pretend)
    for path in tmp_path.glob('teacher_seed0/*/'):
        shutil.rmtree(path)
    assert run_grid(pair(config), tmp_path, train=pretend) == []
    assert len(attempts(tmp_path / 'teacher_seed0')) == 1
    more = pair(config, seeds=(0, 1))
    assert run_grid(more, tmp_path, train=fail) == [
        *('teacher_seed0', 'student_seed1')
    ]
    assert run_grid(more, tmp_path, train=pretend) == []
    assert len(attempts(tmp_path / 'teacher_seed0')) == 2
    assert len(attempts(tmp_path / 'student_seed0')) == 1


def test_modules_of_the_config_are_imported(tmp_path, config, monkeypatch):
    (tmp_path / 'only_of_this_config.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    Path(config).write_text(
        f"{CONFIG}custom_imports = dict(imports=['only_of_this_config'])\n"
    )
    grid = Grid('', [Contestant('a', config)], [0])
    assert run_grid(grid, tmp_path, train=pretend) == []


def endless(cfg, report, metric):
    """Stands in for a long run; holds a lock while its process lives."""
    with open(Path(cfg.work_dir).parent / 'lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(1000)


def is_locked(path):
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_until(condition, process=None):
    end = time.monotonic() + 120
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(process.communicate()[0])
        assert time.monotonic() < end
        time.sleep(0.05)


def test_killed_arena_leaves_no_process_behind(tmp_path, config):
    script = tmp_path / 'script.py'
    script.write_text(
        f'import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n'
        f'sys.path.insert(1, {str(Path(__file__).parents[1])!r})\n'
        'import test_run\n'
        "if __name__ == '__main__':\n"
        f'    grid = test_run.pair({config!r})\n'
        f'    test_run.run_grid(grid, {str(tmp_path)!r}, 2, test_run.endless)'
    )
    process = start_tool(tmp_path, script)
    lock = tmp_path / 'teacher_seed0' / 'lock'
    try:
        wait_until(lambda: lock.exists() and is_locked(lock), process)
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not is_locked(lock))
    assert run_grid(pair(config), tmp_path, train=pretend) == []


def test_options_that_replace_hold_for_every_seed(tmp_path, config):
    options = {'train_cfg': dict(_delete_=True, max_iters=3)}
    mine = {'randomness': dict(_delete_=True, deterministic=True)}
    one, two = Contestant('a', config, mine), Contestant('b', config)
    grid = Grid('', [one, two], range(3), options)
    jobs = plan_jobs(grid, tmp_path)
    assert {str(job.cfg.train_cfg) for job in jobs} == {"{'max_iters': 3}"}
    for job in jobs:
        wanted = {'seed': job.cell.seed}
        if job.cell.contestant is one:
            wanted['deterministic'] = True
        assert job.cfg.randomness == wanted


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(options={'optim_wraper.lr': 1}), "no 'optim_wraper'"),
        (dict(seed_keys=['randomnes.seed']), "no 'randomnes'"),
        (dict(options={'optim_wraper': {}}), "did you mean 'optim_wrapper'"),
    ],
)
def test_a_misspelt_key_is_refused(tmp_path, config, settings, message):
    grid = Grid('', [Contestant('a', config)], [0], **settings)
    with pytest.raises((ValueError, UsageError), match=message):
        plan_jobs(grid, tmp_path)


def test_a_result_of_another_config_is_left_out(tmp_path, config, capsys):
    grid = Grid('', [Contestant('a', config)], [0])
    assert run_grid(grid, tmp_path, workers=1, train=pretend) == []
    other = Grid('', [Contestant('a', config, {'model.pause': 0.1})], [0])
    for each, count in ((grid, 1), (other, 0)):
        jobs = plan_jobs(each, tmp_path)
        digests = {job.cell.key: job.digest for job in jobs}
        assert len(read_results(each, tmp_path, digests)) == count
    assert (
        'a_seed0: left out, its config has changed' in capsys.readouterr()[0]
    )


def test_no_workers(tmp_path, config):
    with pytest.raises(ValueError, match='with 0 workers'):
        run_grid(Grid('', [Contestant('a', config)], [0]), tmp_path, workers=0)


def test_one_run_at_a_time_in_a_folder(tmp_path, config):
    grid = Grid('', [Contestant('a', config)], [0])
    with FileLock(tmp_path / '.lock'):
        with pytest.raises(ValueError, match='another run is at work'):
            run_grid(grid, tmp_path, workers=1, train=pretend)
        assert attempts(tmp_path / 'a_seed0') == []
    assert run_grid(grid, tmp_path, workers=1, train=pretend) == []


# ----------------------------------------------------------------- search


def peaked(cfg, report, metric):
    """Stands in for training with a best rate, other on the test data."""
    measured = pretend(cfg, report, metric)
    best = 0.2 if cfg.model.data == 'held-out' else 0.4
    score = -abs(cfg.model.lr - best) - 0.001 * cfg.randomness.seed
    return dict(measured, accuracy=[(1, score)])


def searching(config, values=(0.1, 0.2, 0.4)):
    options = {'model.lr': 7.0, 'model.data': 'test'}
    search = Search(
        'model.lr', list(values), [8, 9], {'model.data': 'held-out'}
    )
    contestants = [
        Contestant('teacher', config, options, seeds=[0], search=[]),
        Contestant('a', config, options, {'model.teacher_ckpt': 'teacher'}),
    ]
    return Grid('', contestants, range(2), search=search)


def test_the_best_on_held_out_data_is_run(tmp_path, config):
    grid = searching(config)
    assert run_grid(grid, tmp_path, train=peaked) == []
    choice = read_choices(grid, tmp_path)['a']
    assert (choice.value, choice.at_edge) == (0.2, False)
    scores = {value: round(score, 4) for value, score in choice.scores}
    assert scores == {0.1: -0.1085, 0.2: -0.0085, 0.4: -0.2085}
    teacher, *finals = read_results(grid, tmp_path)
    assert (teacher.value, teacher.final) == (None, -6.6)
    assert [run.value for run in finals] == [0.2, 0.2]
    assert [round(run.final, 4) for run in finals] == [-0.2, -0.201]


def test_a_wider_search_runs_again_only_what_it_changes(
    tmp_path, config, capsys
):
    narrow = searching(config, (0.1, 0.2))
    assert run_grid(narrow, tmp_path, train=peaked) == []
    assert read_choices(narrow, tmp_path)['a'].at_edge
    final = tmp_path / 'a_seed0'
    same = searching(config, (0.1, 0.2, 0.3))
    assert run_grid(same, tmp_path, train=peaked) == []
    assert len(attempts(final)) == 1
    assert 'a_seed0: finished before, with 0.2' in capsys.readouterr().out
    other = searching(config, (0.1, 0.21, 0.3, 0.195))
    # Until it has run again, what there is does not count.
    jobs = plan_jobs(other, tmp_path)
    assert digests_of(jobs)['a_seed0'] is None
    assert [r.name for r in read_results(other, tmp_path)] == ['teacher']
    assert run_grid(other, tmp_path, train=peaked) == []
    assert len(attempts(final)) == 2
    assert read_result(final).value == 0.195


def test_some_contestants_run_with_what_they_need(tmp_path, config):
    grid = searching(config)
    more = Contestant('b', config, {'model.lr': 1.0, 'model.data': ''})
    grid = replace(grid, contestants=[*grid.contestants, more])
    jobs = plan_jobs(grid, tmp_path)
    assert run_jobs(jobs_of(jobs, ['teach*']), tmp_path, train=peaked) == []
    assert {run.name for run in read_results(grid, tmp_path)} == {'teacher'}
    chosen = jobs_of(jobs, ['a'])
    assert [job.cell.contestant.name for job in chosen].count('a') == 6 + 2
    assert len(chosen) == 1 + 6 + 2
    assert run_jobs(chosen, tmp_path, train=peaked) == []
    names = [run.name for run in read_results(grid, tmp_path)]
    assert names == ['teacher', 'a', 'a']
    assert jobs_of(jobs, ['*']) == jobs
    with pytest.raises(ValueError, match="no contestant 'c"):
        jobs_of(jobs, ['a', 'c?'])


def test_a_failed_search_leaves_its_contestant_out(tmp_path, config, capsys):
    grid = searching(config)
    grid.search.options['model.fails'] = True
    failed = run_grid(grid, tmp_path, train=peaked)
    assert len(failed) == 6 + 2
    assert 'a_seed0 is left out' in capsys.readouterr().err
    assert read_choices(grid, tmp_path) == {}


def diverges_at_high_rates(cfg, report, metric):
    if cfg.model.lr == 0.4:
        raise NonFiniteError('loss is nan')
    return peaked(cfg, report, metric)


def test_a_value_that_diverges_is_not_chosen(tmp_path, config):
    grid = searching(config)
    grid.contestants[0].options['model.lr'] = 0.1
    assert run_grid(grid, tmp_path, train=diverges_at_high_rates) == []
    choice = read_choices(grid, tmp_path)['a']
    assert choice.value == 0.2 and math.isnan(choice.scores[-1][1])
    board = write_report(grid, tmp_path)
    assert board['contestants']['a']['chosen']['scores'][-1] == (0.4, None)


# -------------------------------------------------------------------- GPUs


def test_gpus_are_handed_out_in_turn(tmp_path, config, monkeypatch):
    """Each process is started where it sees one of them."""
    start, seen = run._start, []

    def note(context, job, train, gpu):
        with run._sees(gpu):
            seen.append(os.environ['CUDA_VISIBLE_DEVICES'])
        return start(context, job, train, gpu)

    monkeypatch.setattr(run, '_gpus', lambda: ['3', '5'])
    monkeypatch.setattr(run, '_start', note)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    grid = Grid('', [Contestant('a', config, {'model.pause': 1})], range(2))
    assert run_grid(grid, tmp_path, train=pretend) == []
    assert seen == ['3', '5']
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '3,5'


def measures_nothing(cfg, report, metric):
    return dict(accuracy=[], similarity={})


def test_cells_that_measure_nothing(tmp_path, config, capsys):
    grid = Grid('', [Contestant('idle', config)], [0])
    for _ in range(2):
        failed = run_grid(grid, tmp_path, train=measures_nothing)
        assert failed == ['idle_seed0']
        assert 'accuracy/top1 was never measured' in capsys.readouterr().err
    blind = Contestant('blind', config, {'val_dataloader': None})
    with pytest.raises(ValueError, match=r'blind_seed0: .* no val_dataloader'):
        plan_jobs(Grid('', [blind], [0]), tmp_path)


# ------------------------------------------- what a grid says, in its order


def killed(cfg, report, metric):
    """Stands in for training that is killed in the middle."""
    save_checkpoint(cfg)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_repetition_of_a_teacher_is_no_teacher(tmp_path, config):
    """Its old result must not vouch for a checkpoint of the middle."""
    grid = pair(config, student={'model.fails': True})
    run_grid(grid, tmp_path, workers=1, train=pretend)
    job = plan_jobs(grid, tmp_path)[0]
    shutil.rmtree(job.work_dir)
    assert len(run_grid(grid, tmp_path, workers=1, train=killed)) == 2
    assert job.checkpoint() is not None
    assert not job.is_finished()


def test_overrides_are_merged_one_after_the_other(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.replace('model = dict(', 'model = dict(lr=0, '))
    contestants = [Contestant('a', str(path), {'model': dict(b=2)})]
    search = Search('model.lr', [0.1], [9], {'model': dict(b=3)})
    grid = Grid(
        '', contestants, [0], {'model.a': 1, 'model.b': 1}, search=search
    )
    tried, final = (dict(job.base.model) for job in plan_jobs(grid, tmp_path))
    assert (final['a'], final['b']) == (1, 2)
    assert (tried['a'], tried['b']) == (1, 3)


def test_results_of_another_metric_do_not_count(tmp_path, config, capsys):
    grid = Grid('', [Contestant('a', config)], [0])
    assert run_grid(grid, tmp_path, train=pretend) == []
    other = replace(grid, metric='accuracy/top5')
    assert read_results(other, tmp_path) == []
    assert 'it measured accuracy/top1' in capsys.readouterr().out
    assert run_grid(other, tmp_path, train=pretend) == []
    assert len(attempts(tmp_path / 'a_seed0')) == 2
    assert read_results(other, tmp_path)[0].metric == 'accuracy/top5'
