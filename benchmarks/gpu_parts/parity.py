# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The tests that need a GPU, by pytest: counts, failures, worst errors."""

import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from . import Context

SECONDS = 260
WORKERS = 14
STOP_SECONDS = 15  # to end the tests and write the report
ROOT = Path(__file__).resolve().parents[2]
# Run in Triton's interpreter where there is no GPU.
TINY_TEST = 'tests/test_ops/test_rms_norm_triton.py'


def run(context: Context) -> None:
    """Run the tests and read pytest's report."""
    report = context.out / 'parity.xml'
    report.unlink(missing_ok=True)
    which = [TINY_TEST] if context.tiny else ['tests', '-m', 'gpu']
    if not context.tiny:
        which += ['-n', str(WORKERS), '--dist', 'worksteal']
    environment = dict(os.environ, PYTHONWARNINGS='ignore')
    environment.pop('TRITON_INTERPRET', None)  # the test sets it by itself
    command = [
        *(sys.executable, '-m', 'pytest', '-q', *which),
        *('--tb=short', '-p', 'no:cacheprovider', f'--junitxml={report}'),
    ]
    stopped = False
    with open(context.out / 'pytest.log', 'w') as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            process.wait(max(1, context.left - STOP_SECONDS))
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGINT)  # it still writes its report
            try:
                process.wait(STOP_SECONDS - 2)
            except subprocess.TimeoutExpired:
                process.kill()
    if not report.exists():
        raise RuntimeError('pytest wrote no report; see pytest.log')
    context.save(read_report(report))
    if stopped:
        raise RuntimeError('the tests took too long')
    # 5: nothing was selected, which would prove nothing.
    if process.returncode:
        raise RuntimeError(f'pytest ended with {process.returncode}')


def read_report(path: Path) -> dict:
    """Counts by outcome, failures with messages, recorded errors."""
    found = dict(passed=0, skipped=0, failed=[], errors={})
    for case in ElementTree.parse(path).getroot().iter('testcase'):
        if case.get('classname') is None:
            continue  # was running when the tests were stopped
        name = f'{case.get("classname")}::{case.get("name")}'
        problems = [x for x in case if x.tag in ('failure', 'error')]
        if problems:
            message = (problems[0].get('message') or '')[:400]
            found['failed'].append(f'{name}: {message}')
        elif any(x.tag == 'skipped' for x in case):
            found['skipped'] += 1
        else:
            found['passed'] += 1
        for item in case.iter('property'):
            kind, value = item.get('name'), float(item.get('value'))
            worst = found['errors'].get(kind, 0.0)
            found['errors'][kind] = max(worst, value)
    return found


def markdown(results: dict) -> list[str]:
    """Counts, failures and the worst error of each kind."""
    lines = [
        f'{results["passed"]} passed, {results["skipped"]} skipped, '
        f'{len(results["failed"])} failed.',
        '',
        *(f'* {line}' for line in results['failed']),
    ]
    if results['errors']:
        lines += ['', '| worst relative error | |', '|---|---|']
        lines += [
            f'| {kind} | {value:.1e} |'
            for kind, value in sorted(results['errors'].items())
        ]
    return lines
