# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Parity with the official implementations, file by file.

Run on other files with
``pytest tests/test_models/test_backbones/test_golden.py --golden-dir DIR``.
Each file names its kind; a kind is served by one entry of the ``RUNNERS`` of
a family's module.
"""

from pathlib import Path

import golden_plain_mamba
import golden_scan
import golden_video_mamba
import golden_vim
import golden_vmamba
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
