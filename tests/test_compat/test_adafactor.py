# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Nothing of transformers is imported before somebody asks for it."""

import subprocess
import sys

import pytest


def run(code):
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split('\n')[-2]


def test_transformers_is_imported_when_its_optimizer_is_built():
    pytest.importorskip('transformers')
    code = """
import sys
import transmamba_mm
import torch
from mmengine.registry import OPTIMIZERS
held = [m for m in sys.modules if m.split('.')[0] == 'transformers']
assert not held, held
weight = torch.nn.Parameter(torch.ones(2))
optimizer = OPTIMIZERS.build(dict(type='Adafactor', params=[weight]))
print(type(optimizer).__module__)
"""
    assert run(code) == 'transformers.optimization'


def test_who_has_imported_it_keeps_it():
    pytest.importorskip('transformers')
    code = """
import transformers
from transmamba_mm.compat import apply
print(apply()['mmengine without transformers'])
"""
    assert run(code).startswith('too late')
