# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""``benchmarks/gpu.py`` without a GPU: every part, failures, resuming."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ('parity', 'times', 'tuning', 'models', 'job', 'transfer')


def run(*arguments, code=None):
    """Exit code and output of the script, or of code that imports it."""
    command = [ROOT / 'benchmarks' / 'gpu.py']
    if code is not None:
        start = f'import sys; sys.path.insert(0, {str(ROOT / "benchmarks")!r})'
        command = ['-c', f'{start}; import gpu; gpu.prepare(True)\n{code}']
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    return done.returncode, done.stdout + done.stderr


def read(folder, name):
    return json.loads((folder / f'{name}.json').read_text())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    pytest.importorskip('triton', minversion='3.3')
    folder = tmp_path_factory.mktemp('gpu')
    code, output = run('--interpret', '--out', folder)
    if 'only 0-dimensional arrays' in (folder / 'times.log').read_text():
        pytest.skip("this Triton's interpreter needs an older NumPy")
    assert code == 0, output
    return folder


@pytest.mark.parametrize('name', PARTS)
def test_every_part_is_done(folder, name):
    found = read(folder, name)
    assert found['status'] == 'done' and found['results']
    assert f'## {name}' in (folder / 'report.md').read_text()


def test_what_the_parts_find(folder):
    parity = read(folder, 'parity')['results']
    assert parity['passed'] > 0 and not parity['failed']
    rows = read(folder, 'times')['results']['rows']
    assert rows and all('error' not in row for row in rows)
    tuned = read(folder, 'tuning')['results']['kinds']
    for kind in tuned:
        for row in kind['forward'] + kind['backward']:
            assert row['difference'] < 1e-5
    rows = read(folder, 'models')['results']['rows']
    assert rows and all('error' not in row for row in rows)
    job = read(folder, 'job')['results']
    assert job['step'] and 'error' not in job['resume']


def test_resume_leaves_out_what_is_done(folder):
    before = {name: read(folder, name) for name in PARTS}
    code, output = run('--interpret', '--resume', '--out', folder)
    assert code == 0 and output.count('done before') == len(PARTS)
    assert before == {name: read(folder, name) for name in PARTS}


def test_a_part_that_fails_stops_no_other(tmp_path):
    code, output = run(
        code=f"""
import gpu_parts.times, gpu_parts.models, gpu_parts.job, time
def fail(context):
    context.save(dict(found=1))
    raise RuntimeError('the card is on fire')
def hang(context):
    context.save(dict(found=2))
    time.sleep(60)
gpu_parts.times.run = fail
gpu_parts.job.run, gpu_parts.job.SECONDS = hang, 6
parts = ['times', 'job', 'models']
out = ['--interpret', '--out', {str(tmp_path)!r}]
sys.exit(gpu.main([*out, '--only', *parts]))
"""
    )
    assert code == 1, output
    failed, hung = read(tmp_path, 'times'), read(tmp_path, 'job')
    assert failed['status'] == 'failed' and failed['results'] == {'found': 1}
    assert 'the card is on fire' in failed['error']
    assert hung['status'] == 'unfinished' and hung['results'] == {'found': 2}
    assert read(tmp_path, 'models')['status'] == 'done'
    report = (tmp_path / 'report.md').read_text()
    assert 'the card is on fire' in report and '## models' in report


REPORT = """<testsuites><testsuite>
<testcase classname="a.b" name="good"><properties>
<property name="scan" value="0.25"/></properties></testcase>
<testcase classname="a.b" name="bad"><failure message="wrong"/></testcase>
<testcase classname="a.b" name="left"><skipped/></testcase>
<testcase><failure message="interrupted"/></testcase>
<testcase/>
</testsuite></testsuites>"""


def test_what_was_running_when_time_was_up_has_not_passed(tmp_path):
    """pytest-xdist reports it without a name."""
    path = tmp_path / 'report.xml'
    path.write_text(REPORT)
    code, output = run(
        code='from gpu_parts.parity import read_report; from pathlib import '
        f'Path; print("FOUND", read_report(Path({str(path)!r})))'
    )
    assert code == 0, output
    assert output.partition('FOUND ')[2].strip() == str(
        dict(
            passed=1,
            skipped=1,
            failed=['a.b::bad: wrong'],
            errors={'scan': 0.25},
        )
    )
