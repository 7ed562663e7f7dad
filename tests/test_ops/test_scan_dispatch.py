# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Argument checks and the choice of a backend."""

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
        ({'A': torch.randn(5, 3)}, r'A: .*\(D, N\) = \(6, 3\)'),
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

        def wrapped(p, keep, name=name, inner=module.forward):
            names.append(name)
            return inner(p, keep)

        monkeypatch.setattr(module, 'forward', wrapped)
    return names


def test_auto_takes_the_fastest(calls):
    selective_scan(**inputs())
    first = next(k for k, v in scan_backends().items() if v.available)
    assert calls == [selected_backend()] == [first]


def test_backend_argument(calls):
    selective_scan(**inputs(), backend='reference')
    assert calls == ['reference']


def test_environment_variable(calls, monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'reference')
    selective_scan(**inputs())
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'auto')
    selective_scan(**inputs())
    assert calls == ['reference', selected_backend()]


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
        fastest = selected_backend()
    assert calls == [fastest] != ['reference']


def test_unknown_backend(monkeypatch):
    first = next(iter(scan_backends()))
    message = f"unknown scan backend 'cuda'; expected one of 'auto', '{first}'"
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs(), backend='cuda')
    with pytest.raises(ValueError, match=message), use_scan_backend('cuda'):
        pass
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'cuda')
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs())


@pytest.fixture
def extra(monkeypatch):
    """One more backend, first in the order."""
    module = types.ModuleType('transmamba_mm.ops.backends.extra')
    module.reason = module.refusal = None
    module.devices = ('cpu',)
    module.probe = lambda: module.reason
    module.supports = lambda device, dtype: (
        device.type in module.devices and dtype == torch.float32
    )
    module.refuses = lambda p: module.refusal
    torch_backend = dispatch._module('torch')
    for name in ('forward', 'backward', 'states_shape'):
        setattr(module, name, getattr(torch_backend, name))
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        dispatch,
        '_MODULES',
        {'extra': 'extra', 'torch': 'torch_chunked', 'reference': 'reference'},
    )
    dispatch.forget_probes()
    yield module
    monkeypatch.undo()
    dispatch.forget_probes()


def test_one_module_and_one_line_add_a_backend(extra):
    assert list(scan_backends()) == ['extra', 'torch', 'reference']
    assert selected_backend('cpu', torch.float32) == 'extra'
    u = torch.randn(2, 6, 5, requires_grad=True)
    selective_scan(**inputs(u=u)).sum().backward()
    assert u.grad.abs().sum() > 0


def test_auto_skips_what_does_not_support_the_inputs(extra):
    assert selected_backend('cpu', torch.float64) == 'torch'
    assert selected_backend('cuda', torch.float32) == 'torch'
    with pytest.raises(ValueError, match="'extra' does not support"):
        selected_backend('cpu', torch.float64, backend='extra')
    with pytest.raises(ValueError, match="'extra' does not support"):
        doubles = {k: v.double() for k, v in inputs().items()}
        selective_scan(**doubles, backend='extra')


def test_auto_skips_what_refuses_the_problem(extra):
    ran = []
    inner = extra.forward
    extra.forward = lambda p, keep: ran.append(1) or inner(p, keep)
    selective_scan(**inputs())
    assert len(ran) == 1
    extra.refusal = 'only on Sundays'
    u = torch.randn(2, 6, 5, requires_grad=True)
    selective_scan(**inputs(u=u)).sum().backward()
    assert len(ran) == 1 and u.grad is not None
    message = "'extra' does not do this: only on Sundays; use backend=\"auto"
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs(), backend='extra')


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


def test_probes_are_remembered_until_asked_for(extra):
    assert selected_backend() == 'extra'
    extra.reason = 'gone'
    assert selected_backend() == 'extra'
    scan_backends()
    assert selected_backend() == 'torch'


@pytest.mark.parametrize('backend', ['torch', 'reference'])
def test_backends_receive_no_autocast(backend, monkeypatch):
    seen = []
    module = dispatch._module(backend)
    names = {'forward', 'backward'} & set(vars(module))
    for name, inner in [(name, getattr(module, name)) for name in names]:

        def spy(*args, inner=inner, **kwargs):
            seen.append(torch.is_autocast_enabled('cpu'))
            return inner(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    u = torch.randn(2, 6, 5, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        out = selective_scan(**inputs(u=u), backend=backend)
        out.sum().backward()
    assert seen == [False] * len(seen) and seen
