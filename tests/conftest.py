# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Options and fixtures that all tests share."""

import gc
import multiprocessing
import os
from pathlib import Path

# Before torch: the suite runs in parallel workers on few cores.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from mmengine.config import config as mmengine_config
from mmengine.registry import DefaultScope

import transmamba_mm  # noqa: F401

# Tests of several processes fork a server that has imported this already.
multiprocessing.set_forkserver_preload(['transmamba_mm.arena.run'])

GOLDEN_DIR = Path(__file__).parent / 'data' / 'golden'


def pytest_addoption(parser):
    parser.addoption(
        '--golden-dir',
        default=str(GOLDEN_DIR),
        help='folder of golden .npz files for test_golden.py',
    )


def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: needs a CUDA device')


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason='no CUDA device')
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope='session')
def _configs_as_written():
    """Spares the layout of configs, half the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            mmengine_config, 'FormatCode', lambda text, **style: (text, True)
        )
        yield


@pytest.fixture(autouse=True, scope='module')
def _little_to_collect():
    """What is imported is no garbage; every dataset collects it."""
    gc.collect()
    gc.freeze()


def _restore_default_scope():
    """Undoes the default scope that a Runner leaves behind."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


# Module-scoped fixtures leave one behind, too.
_scope_of_module = pytest.fixture(autouse=True, scope='module')(
    _restore_default_scope
)
_scope_of_test = pytest.fixture(autouse=True)(_restore_default_scope)
