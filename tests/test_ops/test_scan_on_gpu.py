# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The public scan on a GPU, in the surroundings that training brings."""

import pytest
import torch
from scan_cases import make_inputs, make_multi

from transmamba_mm.ops import multi_scan, selective_scan

pytestmark = pytest.mark.gpu

GRAD_TOL = 2e-5


def on(device, inputs, dtype=None):
    return {
        name: x.detach().to(device, dtype).requires_grad_()
        for name, x in inputs.items()
    }


def loop(inputs, grad, **settings):
    """Output and gradients by the loop in float64 on the CPU."""
    wide = on('cpu', inputs, torch.float64)
    scan = multi_scan if 'reverse' in settings else selective_scan
    out = scan(**wide, delta_softplus=True, backend='reference', **settings)
    out.backward(grad.double())
    return [out.detach(), *(x.grad for x in wide.values())]


def assert_same(found, wanted, tol):
    for x, y in zip(found, wanted):
        assert x.shape == y.shape
        error = (x.double().cpu() - y.double().cpu()).abs().max()
        assert error <= tol * y.abs().max().clamp_min(1e-6)


def run(inputs, grad, **settings):
    scan = multi_scan if 'reverse' in settings else selective_scan
    out = scan(**inputs, delta_softplus=True, backend='triton', **settings)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in inputs.values())]


def random_grad(inputs):
    torch.manual_seed(1)
    return torch.randn(inputs['u'].shape)


@pytest.mark.parametrize('N', [1, 2, 7, 32, 256])
def test_numbers_of_states(N):
    inputs = make_inputs(batch=1, channels=40, length=45, N=N)
    grad = random_grad(inputs)
    found = run(on('cuda', inputs), grad.cuda())
    assert_same(found, loop(inputs, grad), GRAD_TOL)


@pytest.mark.parametrize('length', [1, 4096, 65536])
def test_lengths(length):
    """Long ones are cut into segments; compared with the PyTorch backend."""
    inputs = make_inputs(batch=1, channels=32, length=length, N=4)
    grad = random_grad(inputs)
    found = run(on('cuda', inputs), grad.cuda())
    wide = on('cpu', inputs, torch.float64)
    out = selective_scan(**wide, delta_softplus=True, backend='torch')
    out.backward(grad.double())
    wanted = [out.detach(), *(x.grad for x in wide.values())]
    assert_same(found, wanted, 1e-4 if length > 10_000 else GRAD_TOL)


def test_no_tokens():
    inputs = on('cuda', make_inputs(batch=0))
    run(inputs, torch.zeros(inputs['u'].shape, device='cuda'))
    assert inputs['A'].grad.abs().sum() == 0


def test_compiled():
    inputs = make_multi(2, length=33, channels=32, shared=('u', 'z'))
    grad = random_grad(inputs)
    settings = dict(reverse=(False, True), merge='sum')

    @torch.compile(fullgraph=True)
    def scan(**tensors):
        # None of its results may be a view for autograd's sake.
        return 2 * multi_scan(**tensors, delta_softplus=True, **settings)

    tensors = on('cuda', inputs)
    out = scan(**tensors)
    out.backward(grad.cuda())
    found = [out.detach(), *(x.grad for x in tensors.values())]
    assert_same(found, [2 * x for x in loop(inputs, grad, **settings)], 4e-5)


def test_autocast_with_a_scaler():
    """One step of training in float16, as MMEngine's AmpOptimWrapper."""
    inputs = make_inputs(batch=2, channels=32, length=50, N=8)
    project = torch.nn.Linear(50, 50).cuda()
    before = project.weight.detach().clone()
    scaler = torch.amp.GradScaler('cuda', init_scale=2.0**10)
    optimizer = torch.optim.SGD(project.parameters(), lr=0.1)
    tensors = on('cuda', inputs)
    with torch.autocast('cuda', torch.float16):
        u = project(tensors.pop('u'))
        out = selective_scan(u, **tensors, delta_softplus=True)
        assert out.dtype == torch.float16
        loss = out.float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**10  # nothing overflowed
    assert not torch.equal(project.weight, before)


def test_cuda_graph():
    """Captured forward and backward, replayed on other values."""
    inputs = make_inputs(batch=2, channels=64, length=70, N=16)
    grad = random_grad(inputs)
    tensors, grad_out = on('cuda', inputs), grad.cuda()

    def step():
        out = selective_scan(**tensors, delta_softplus=True, backend='triton')
        return out, *torch.autograd.grad(out, tensors.values(), grad_out)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    other = make_inputs(batch=2, channels=64, length=70, N=16, seed=5)
    with torch.no_grad():
        for name, x in other.items():
            tensors[name].copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    assert_same([x.detach() for x in captured], loop(other, grad), GRAD_TOL)


def test_streams():
    """Launches go to the current stream, results are those of one."""
    inputs = make_inputs(batch=8, channels=256, length=200, N=16)
    grad = random_grad(inputs).cuda()
    wanted = run(on('cuda', inputs), grad)
    torch.cuda.synchronize()
    results = []
    for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results.append(run(on('cuda', inputs), grad))
    torch.cuda.synchronize()
    for found in results:
        assert all(torch.equal(x, y) for x, y in zip(found, wanted))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='one GPU')
def test_other_device():
    inputs = make_inputs(channels=32)
    grad = random_grad(inputs)
    found = run(on('cuda:1', inputs), grad.to('cuda:1'))
    assert_same(found, loop(inputs, grad), GRAD_TOL)


def test_segments_change_nothing_but_rounding(monkeypatch):
    from transmamba_mm.ops.backends import triton_tiling

    inputs = make_multi(2, length=300, channels=48, shared=('u', 'z'), N=16)
    grad = random_grad(inputs)
    settings = dict(reverse=(False, True), merge='sum')
    cut = run(on('cuda', inputs), grad.cuda(), **settings)
    monkeypatch.setattr(triton_tiling, 'MOST_SEGMENTS', 1)
    whole = run(on('cuda', inputs), grad.cuda(), **settings)
    assert_same(cut, whole, 1e-5)
