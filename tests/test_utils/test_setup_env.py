# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import datetime

import pytest
from mmengine import DefaultScope

from transmamba_mm.utils import register_all_modules


@pytest.fixture
def scopes(monkeypatch):
    """A world without default scopes, put back afterwards."""
    monkeypatch.setattr(
        DefaultScope, '_instance_dict', type(DefaultScope._instance_dict)()
    )


def test_registers_without_touching_the_scope(scopes):
    register_all_modules(init_default_scope=False)
    assert DefaultScope.get_current_instance() is None


def test_sets_mmpretrains_scope(scopes):
    register_all_modules()
    assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
    register_all_modules()  # nothing to change, hence no warning


def test_warns_before_it_replaces_another_scope(scopes):
    name = f'other-{datetime.datetime.now()}'
    DefaultScope.get_instance(name, scope_name='mmrazor')
    with pytest.warns(UserWarning, match='mmrazor'):
        register_all_modules()
    assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
