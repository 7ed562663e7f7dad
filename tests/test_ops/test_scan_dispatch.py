# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Argument checks and the choice of a backend."""

import subprocess
import sys
import types

import pytest
import torch

from transmamba_mm.ops import (
    dispatch,
    scan_backends,
    selected_backend,
    selective_scan,
    use_scan_backend,
)


def inputs(**replace):
    args = {
        'u': torch.randn(2, 6, 5),
        'delta': torch.rand(2, 6, 5),
        'A': -torch.rand(6, 3),
        'B': torch.randn(2, 3, 5),
        'C': torch.randn(2, 3, 5),
    }
    return {**args, **replace}


@pytest.mark.parametrize(
    'replace, message',
    [
        ({'u': torch.randn(6, 5)}, r'u: expected shape \(B, D, L\)'),
        ({'delta': torch.randn(2, 6, 4)}, r'delta: .*\(2, 6, 5\).*\(2, 6, 4'),
        ({'A': torch.randn(5, 3)}, r'A: .*\(D, N\) = \(6, N\)'),
        ({'A': torch.randn(6)}, r'A: expected'),
        ({'A': torch.randn(6, 0)}, r'A: .*N >= 1'),
        ({'B': torch.randn(2, 4, 5)}, r'B: .*\(2, 3, 5\).*\(2, 4, 5\)'),
        ({'C': torch.randn(2, 2, 3, 4)}, r'C: .*\(2, G, 3, 5\)'),
        ({'C': torch.randn(3)}, r'C: expected'),
        ({'B': torch.randn(2, 4, 3, 5)}, r'B: its 4 groups .* D = 6'),
        ({'B': torch.randn(2, 0, 3, 5)}, r'B: its 0 groups .* D = 6'),
        ({'D': torch.randn(6, 1)}, r'D: .*\(D,\) = \(6,\).*\(6, 1\)'),
        ({'z': torch.randn(2, 5, 6)}, r'z: .*\(2, 6, 5\)'),
        ({'delta_bias': torch.randn(3)}, r'delta_bias: .*\(6,\)'),
        ({'z': torch.empty(2, 6, 5, device='meta')}, r'z: is on meta'),
    ],
)
def test_wrong_values_are_named(replace, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs(**replace))


@pytest.mark.parametrize(
    'replace, message',
    [
        ({'A': torch.randn(6, 3, dtype=torch.complex64)}, 'A: complex'),
        ({'u': torch.ones(2, 6, 5, dtype=torch.int64)}, 'u: .*floating'),
        ({'D': [1.0] * 6}, 'D: expected a tensor, got list'),
        ({'B': None}, 'B: expected a tensor, got NoneType'),
    ],
)
def test_wrong_types_are_named(replace, message):
    with pytest.raises(TypeError, match=message):
        selective_scan(**inputs(**replace))


@pytest.fixture
def calls(monkeypatch):
    """Record which backend runs, and leave the environment empty."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    names = []
    for name in scan_backends():
        module = dispatch._module(name)

        def wrapped(*args, name=name, inner=module.selective_scan):
            names.append(name)
            return inner(*args)

        monkeypatch.setattr(module, 'selective_scan', wrapped)
    return names


def test_auto_takes_the_fastest(calls):
    selective_scan(**inputs())
    assert calls == [selected_backend()] == ['torch']


def test_backend_argument(calls):
    selective_scan(**inputs(), backend='reference')
    assert calls == ['reference']


def test_environment_variable(calls, monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'reference')
    selective_scan(**inputs())
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'auto')
    selective_scan(**inputs())
    assert calls == ['reference', 'torch']


def test_context_manager_nests_and_restores(calls, monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'torch')
    with use_scan_backend('reference'):
        selective_scan(**inputs())
        with use_scan_backend('torch'):
            selective_scan(**inputs())
        selective_scan(**inputs(), backend='torch')
        selective_scan(**inputs())
    selective_scan(**inputs())
    assert calls == ['reference', 'torch', 'torch', 'reference', 'torch']


def test_context_manager_auto_overrides_the_environment(calls, monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'reference')
    with use_scan_backend('auto'):
        selective_scan(**inputs())
    assert calls == ['torch']


def test_unknown_backend(monkeypatch):
    message = "unknown scan backend 'cuda'; expected one of 'auto', 'torch'"
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs(), backend='cuda')
    with pytest.raises(ValueError, match=message), use_scan_backend('cuda'):
        pass
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'cuda')
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs())


@pytest.fixture
def extra(monkeypatch):
    """A third backend, as a later native one, first in the order."""
    module = types.ModuleType('transmamba_mm.ops.extra')
    module.reason = None
    module.devices = ('cpu',)
    module.probe = lambda: module.reason
    module.supports = lambda device, dtype: (
        device.type in module.devices and dtype == torch.float32
    )
    module.selective_scan = dispatch._module('reference').selective_scan
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        dispatch, '_MODULES', {'extra': 'extra', **dispatch._MODULES}
    )
    return module


def test_one_module_and_one_line_add_a_backend(extra):
    assert list(scan_backends()) == ['extra', 'torch', 'reference']
    assert selected_backend('cpu', torch.float32) == 'extra'
    selective_scan(**inputs())


def test_auto_skips_what_does_not_support_the_inputs(extra):
    assert selected_backend('cpu', torch.float64) == 'torch'
    assert selected_backend('cuda', torch.float32) == 'torch'
    with pytest.raises(ValueError, match="'extra' does not support"):
        selected_backend('cpu', torch.float64, backend='extra')


def test_unavailable_backend(extra):
    extra.reason = 'no compiler; install g++'
    assert scan_backends()['extra'] == (False, 'no compiler; install g++')
    assert scan_backends()['torch'] == (True, '')
    assert selected_backend() == 'torch'
    with pytest.raises(RuntimeError, match=r'unavailable: no compiler; inst'):
        selective_scan(**inputs(), backend='extra')
    with pytest.raises(RuntimeError, match='unavailable'):  # noqa: SIM117
        with use_scan_backend('extra'):
            pass


def test_backends_receive_no_autocast(calls, monkeypatch):
    seen = []
    module = dispatch._module('torch')
    inner = module.selective_scan

    def spy(*args):
        seen.append(torch.is_autocast_enabled('cpu'))
        return inner(*args)

    monkeypatch.setattr(module, 'selective_scan', spy)
    with torch.autocast('cpu', torch.bfloat16):
        selective_scan(**inputs())
    assert seen == [False]


def test_use_does_not_import_the_compiler():
    """Importing torch._dynamo takes a second; a scan must not cause it."""
    code = (
        'import sys, torch, transmamba_mm.ops as ops;'
        'before = "torch._dynamo" in sys.modules;'
        'x = torch.ones(1, 1, 1); a = torch.ones(1, 1);'
        'ops.selective_scan(x, x, a, a, a);'
        'assert before or "torch._dynamo" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)
