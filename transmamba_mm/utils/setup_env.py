# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Registers all modules of the package, as other OpenMMLab packages do."""

import datetime
import warnings
from importlib import import_module
from importlib.util import find_spec

from mmengine import DefaultScope

__all__ = ['register_all_modules']

_PARTS = ('models', 'transfer', 'distill', 'datasets', 'engine', 'evaluation')
_MMPRETRAIN_PARTS = (
    'models',
    'datasets',
    'engine',
    'evaluation',
    'structures',
    'visualization',
)


def register_all_modules(init_default_scope: bool = True) -> None:
    """Registers all modules of transmamba_mm and of mmpretrain.

    Args:
        init_default_scope (bool): Whether to set the default scope, to
            'mmpretrain' as in all our configs. Defaults to True.
    """
    import_module('transmamba_mm')
    names = [f'mmpretrain.{part}' for part in _MMPRETRAIN_PARTS]
    names += [f'transmamba_mm.{part}' for part in _PARTS]
    for name in names:
        if find_spec(name) is not None:
            import_module(name)
    if init_default_scope:
        _set_default_scope('mmpretrain')


def _set_default_scope(scope: str) -> None:
    current = DefaultScope.get_current_instance()
    if current is None:
        DefaultScope.get_instance(scope, scope_name=scope)
    elif current.scope_name != scope:
        warnings.warn(
            f'the default scope changes from {current.scope_name!r} to '
            f'{scope!r}; pass init_default_scope=False to keep it',
            stacklevel=3,
        )
        # An instance name can be used once, hence the time in it.
        name = f'{scope}-{datetime.datetime.now()}'
        DefaultScope.get_instance(name, scope_name=scope)
