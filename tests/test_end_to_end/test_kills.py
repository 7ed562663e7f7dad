# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A sample of ``tests/torture/kills.py``, which kills at every operation."""

import sys
from pathlib import Path

import pytest
from mmengine.device import get_device

sys.path.append(str(Path(__file__).resolve().parents[1] / 'torture'))

import kills

pytestmark = pytest.mark.skipif(
    get_device() != 'cpu', reason='bit-equality is a promise for the CPU'
)


@pytest.mark.parametrize(
    'options', [['--every=29'], ['--every=53', '--twice']]
)
def test_a_sample(capfd, options):
    kills.main(options)
    assert ' 0 with another outcome' in capfd.readouterr().out
