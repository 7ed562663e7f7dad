# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import importlib
import subprocess
import sys

import pytest

from transmamba_mm.compat import Problem
from transmamba_mm.ops import scan_backends
from transmamba_mm.utils import collect_env

# The package holds the function of that name, not the module.
module = importlib.import_module('transmamba_mm.utils.collect_env')


def test_names_every_package_and_cure():
    env = collect_env()
    for name in ('PyTorch', 'mmrazor', 'transmamba_mm', 'transformers', 'av'):
        assert name in env
    assert 'compat: mmrazor distillation half' in env
    assert all(isinstance(value, str) for value in env.values())


def test_lists_scan_backends():
    lines = module._scan_backends()
    assert len(lines) == len(scan_backends())
    assert 'available' in lines.values()


def test_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, '-m', 'transmamba_mm.utils.collect_env'],
        capture_output=True,
        text=True,
    )
    problems = 'PROBLEM: ' in result.stdout
    assert result.returncode == int(problems), result.stderr
    assert 'mmengine: ' in result.stdout
    assert 'found in sys.modules' not in result.stderr


@pytest.mark.parametrize(('required', 'code'), [(True, 1), (False, 0)])
def test_exit_code_and_fix(monkeypatch, capsys, required, code):
    problem = Problem('x 9 is too new', 'pip install x==8', required=required)
    monkeypatch.setattr(module, 'find_all_problems', lambda: [problem])
    monkeypatch.setattr(module, 'collect_env', lambda: {'a': 'b'})
    assert module.main() == code
    out = capsys.readouterr().out.splitlines()
    assert out[0] == 'a: b'
    assert out[1].endswith('x 9 is too new. Fix: pip install x==8')


def test_failing_import_is_a_problem(monkeypatch):
    def fail(name):
        raise RuntimeError('operator torchvision::nms does not exist\nmore')

    monkeypatch.setattr(module, 'import_module', fail)
    problems = module._failing_imports()
    assert len(problems) == 3
    assert 'nms does not exist)' in str(problems[0])
