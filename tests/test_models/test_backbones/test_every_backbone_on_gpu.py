# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Every backbone on a GPU computes what it computes on the CPU."""

import pytest
import torch
from every_backbone_cases import TINY, build, every_backbone, inputs

pytestmark = pytest.mark.gpu

FIRSTS = [(name, next(iter(kinds.values()))) for name, kinds in TINY.items()]


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def step(net, x):
    """Output and gradients by name."""
    net.zero_grad()
    out = net(x)[-1]
    out.float().square().sum().backward()
    grads = {k: p.grad for k, p in net.named_parameters()}
    return {'out': out.detach(), **grads}


def assert_close(found, wanted, tol):
    for name, x in wanted.items():
        if x is None:
            assert found[name] is None
            continue
        error = (found[name].float().cpu() - x.float().cpu()).abs().max()
        assert error <= tol * x.abs().max().clamp_min(1e-4), name


@every_backbone
def test_float32(name, kwargs):
    net, x = build(name, kwargs), inputs(kwargs)
    wanted = {
        k: v if v is None else v.clone() for k, v in step(net, x).items()
    }
    assert_close(step(net.cuda(), x.cuda()), wanted, 2e-4)


@every_backbone
def test_bfloat16_autocast(name, kwargs):
    net, x = build(name, kwargs), inputs(kwargs)
    wanted = net(x)[-1].detach()
    net.cuda()
    with torch.autocast('cuda', torch.bfloat16):
        found = step(net, x.cuda())
    assert_close({'out': found['out']}, {'out': wanted}, 0.1)
    assert all(g.isfinite().all() for g in found.values() if g is not None)


@pytest.mark.parametrize(('name', 'kwargs'), FIRSTS)
def test_compiled(name, kwargs):
    net, x = build(name, kwargs).cuda(), inputs(kwargs).cuda()
    wanted = {
        k: v if v is None else v.clone() for k, v in step(net, x).items()
    }
    net.compile()
    assert_close(step(net, x), wanted, 2e-4)
