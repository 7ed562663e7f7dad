# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The quickstart, shortened, through its own command line."""

import json
import subprocess
import sys

from helpers import TOOLS, tool_env

from transmamba_mm.apis import quickstart
from transmamba_mm.apis.quickstart import REPORTED, Result, table


def result(name, seed, final):
    return Result(name, seed, [(1, 10.0), (2, final)], {})


def test_table_states_lead_and_error():
    results = [result('teacher', 0, 95.0)]
    for name in (*REPORTED, 'transmamba_logits_kd'):
        base = 90.0 if name.startswith('transmamba') else 70.0
        # Paired, the seeds' own level does not count.
        results += [result(name, s, base + 5 * s) for s in range(3)]
    lines = {line.split()[0]: line for line in table(results).splitlines()}
    assert '75.0 ± 5.0' in lines['scratch']
    assert '+20.0 ± 0.0' in lines['scratch']
    assert '95 % interval' in lines['(paired']


def test_read_result_keeps_epochs_and_similarities(tmp_path):
    lines = [
        dict(loss=1.0, step=1),
        {
            'loss_transmamba/similarities/raster/layer00': 0.5,
            'loss_transmamba/weights/raster/layer00': 1.0,
            'step': 5,
        },
        {'accuracy/top1': 40.0, 'step': 1},
        {'accuracy/top1': 60.0, 'step': 2},
    ]
    path = tmp_path / 'scalars.json'
    path.write_text('\n'.join(map(json.dumps, lines)))
    job = quickstart.Job('scratch', 'c.py', str(tmp_path), seed=1)
    read = quickstart.read_result(job, path)
    assert read.accuracy == [(1, 40.0), (2, 60.0)] and read.final == 60.0
    assert read.similarity == {'raster/layer00': [(5, 0.5)]}


def test_a_folder_may_hold_an_older_run(tmp_path, monkeypatch):
    class Runner:
        finals = iter([40.0, 60.0])

        def register_hook(self, hook):
            pass

        def train(self):
            final = next(self.finals)
            folder = tmp_path / f'20260101_0000{final:.0f}' / 'vis_data'
            folder.mkdir(parents=True)
            line = json.dumps({'accuracy/top1': final, 'step': 1})
            (folder / 'scalars.json').write_text(line)

    monkeypatch.setattr(quickstart.Runner, 'from_cfg', lambda cfg: Runner())
    config = quickstart.config_dir() / 'quickstart' / 'deit_digits.py'
    job = quickstart.Job('teacher', str(config), str(tmp_path), seed=0)
    assert quickstart.run_job(job).final == 40.0
    assert quickstart.run_job(job).final == 60.0


def test_command_line_ends_with_json(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(TOOLS / 'quickstart.py'),
            *('--seeds', '1', '--teacher-epochs', '2'),
            *('--student-epochs', '2', '--workers', '2'),
            *('--out-dir', str(tmp_path)),
        ],
        env=tool_env(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert list(last) == ['teacher', *REPORTED]
    assert all(0 <= value <= 100 for value in last.values())
    assert 'left' in done.stdout  # progress with an estimate
    for name in ('accuracy.png', 'similarity.png'):
        assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')
    runs = json.loads((tmp_path / 'results.json').read_text())
    assert len(runs) == 6
    seen = next(r for r in runs if r['name'] == 'transmamba')['similarity']
    assert len(seen) == 4 * 4  # directions times layers
