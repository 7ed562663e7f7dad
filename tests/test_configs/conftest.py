# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The scope that the configs' types belong to."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield
