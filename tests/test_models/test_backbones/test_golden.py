# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Parity with the official implementations, file by file.

Run on other files with
``pytest tests/test_models/test_backbones/test_golden.py --golden-dir DIR``.
Each file names its kind; a kind is served by one entry of the ``RUNNERS`` of
a family's module.
"""

from pathlib import Path

import golden_files
import golden_plain_mamba
import golden_scan
import golden_video_mamba
import golden_vim
import golden_vmamba
import pytest
import torch
from golden_files import Golden

RUNNERS = {
    **golden_scan.RUNNERS,
    **golden_plain_mamba.RUNNERS,
    **golden_video_mamba.RUNNERS,
    **golden_vim.RUNNERS,
    **golden_vmamba.RUNNERS,
}


def pytest_generate_tests(metafunc):
    if 'golden_file' in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption('--golden-dir'))
        files = sorted(folder.glob('*.npz'))
        assert files, f'no golden files in {folder}'
        metafunc.parametrize('golden_file', files, ids=lambda f: f.stem)


def test_golden(golden_file):
    golden = Golden(golden_file)
    RUNNERS[golden.config['kind']](golden)


@pytest.mark.gpu
def test_golden_on_gpu(golden_file, monkeypatch):
    """The same on a GPU; its products sum in another order."""

    def assert_close(actual, expected, tolerance, name):
        assert_on_cpu(actual, expected, 10 * tolerance, name)

    assert_on_cpu = golden_files.assert_close
    for module in (golden_files, golden_scan, golden_vim, golden_vmamba):
        monkeypatch.setattr(module, 'assert_close', assert_close)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    golden = Golden(golden_file)
    with torch.device('cuda'):
        RUNNERS[golden.config['kind']](golden)
