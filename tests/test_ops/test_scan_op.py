# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The operator in torch.library, autograd and torch.compile."""

import subprocess
import sys

import pytest
import torch
from scan_cases import assert_close, make_inputs, make_multi, usable_backends
from torch import nn

from transmamba_mm.ops import multi_scan, selective_scan, use_scan_backend
from transmamba_mm.ops.scan_op import _public_out

op = torch.ops.transmamba_mm
BACKENDS = usable_backends()
K, LENGTH = 3, 12


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def op_arguments(backend, stack=False, absent=(), keep=True):
    inputs = make_multi(K, ('u', 'delta', 'z'), 2, length=LENGTH)
    for name in absent:
        inputs[name] = None
    tensors = [
        None if x is None else x.requires_grad_(keep) for x in inputs.values()
    ]
    orders = torch.stack([torch.randperm(LENGTH) for _ in range(K)])
    reverse = [False, True, False]
    return [*tensors, True, orders, reverse, False, not stack, keep, backend]


@pytest.mark.parametrize('stack', [False, True])
@pytest.mark.parametrize('absent', [(), ('D', 'z', 'delta_bias')])
def test_opcheck(stack, absent, backend):
    arguments = op_arguments(backend, stack, absent)
    torch.library.opcheck(op.selective_scan, arguments)
    torch.library.opcheck(
        op.selective_scan, op_arguments(backend, stack, absent, keep=False)
    )


@pytest.mark.parametrize('stack', [False, True])
def test_opcheck_of_the_backward_pass(stack, backend):
    *inputs, _, _ = op_arguments(backend, stack)
    inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
    out, _, states = op.selective_scan(*inputs, True, backend)
    for needs in ([True] * 8, [True, False] * 4):
        arguments = (out, states, *inputs, needs, backend)
        torch.library.opcheck(op.selective_scan_backward, arguments)


def test_one_direction_opcheck(backend):
    tensors = [x.requires_grad_() for x in make_inputs().values()]
    settings = [True, None, [True], False, True, True, backend]
    torch.library.opcheck(op.selective_scan, [*tensors, *settings])


class Block(nn.Module):
    """A scan, and several directions on its output."""

    def __init__(self, ordered=True, channels=8, N=4):
        super().__init__()
        self.N, self.channels = N, channels
        self.proj = nn.Linear(channels, channels + 2 * N)
        self.A = nn.Parameter(-torch.rand(K, channels, N))
        self.D = nn.Parameter(torch.rand(channels))
        orders = [torch.randperm(LENGTH) for _ in range(K)]
        self.orders = torch.stack(orders) if ordered else None
        self.order = torch.randperm(LENGTH) if ordered else None

    def forward(self, x):
        sizes = [self.channels, self.N, self.N]
        delta, B, C = (y.mT for y in self.proj(x).split(sizes, -1))
        y = selective_scan(
            x.mT,
            delta,
            self.A[0],
            B,
            C,
            self.D,
            z=x.mT,
            delta_softplus=True,
            order=self.order,
            reverse=True,
        )
        y, last = multi_scan(
            y * 2,
            delta,
            self.A,
            B,
            C,
            self.D,
            delta_softplus=True,
            orders=self.orders,
            reverse=[True, False, True],
            merge='stack',
            return_last_state=True,
        )
        return y.sum(1).mT + last.sum()


def compare(model, compiled, x):
    """Outputs and gradients, of the model as it is and compiled."""
    results = []
    for run in (model, compiled):
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        names = ['x', *(name for name, _ in model.named_parameters())]
        grads = torch.autograd.grad(
            out.square().mean(), [leaf, *model.parameters()]
        )
        named = {f'grad_{k}': g for k, g in zip(names, grads)}
        results.append({'out': out.detach(), **named})
    assert_close(*results)
    with torch.no_grad():
        assert_close({'out': compiled(x)}, {'out': model(x)})


@pytest.fixture
def fresh():
    """Count graphs from zero."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.filterwarnings('ignore')
def test_compiled_module(backend, fresh):
    model = Block()
    with use_scan_backend(backend):
        compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
        for _ in range(3):
            compare(model, compiled, torch.randn(2, LENGTH, 8))
    assert fresh['stats']['unique_graphs'] == 2  # with and without gradients
    assert not fresh['graph_break']


@pytest.mark.filterwarnings('ignore')
def test_compiled_module_of_dynamic_shape(backend, fresh):
    model = Block(ordered=False)
    with use_scan_backend(backend):
        compiled = torch.compile(
            model, backend='aot_eager', fullgraph=True, dynamic=True
        )
        for batch, length in ((2, 12), (3, 20), (4, 31)):
            compare(model, compiled, torch.randn(batch, length, 8))
    assert fresh['stats']['unique_graphs'] == 2


@pytest.mark.skipif(
    torch.__version__.startswith('2.4.'),
    reason='the compiler of PyTorch 2.4 cannot trace questions on autocast',
)
@pytest.mark.filterwarnings('ignore')
def test_compiled_function_with_the_loop(fresh):
    """An explicit reference is traced, and has double derivatives."""
    inputs = make_inputs(length=3)
    u = inputs.pop('u').requires_grad_()

    @torch.compile(backend='aot_eager', fullgraph=True)
    def function(u):
        return selective_scan(
            u, **inputs, delta_softplus=True, backend='reference'
        )

    want = selective_scan(u, **inputs, delta_softplus=True)
    assert_close({'out': function(u)}, {'out': want})


@pytest.mark.filterwarnings('ignore')
def test_the_loop_by_the_environment_cannot_be_compiled(fresh):
    inputs = make_inputs(length=3)
    u = inputs.pop('u').requires_grad_()
    compiled = torch.compile(selective_scan, backend='aot_eager')
    with use_scan_backend('reference'), torch.no_grad():
        assert compiled(u, **inputs).shape == u.shape
    with use_scan_backend('reference'), pytest.raises(Exception) as info:
        compiled(u, **inputs).sum().backward()
    assert 'chosen by the argument backend=' in str(info.value)


def test_states_of_another_backend_are_refused():
    *inputs, _, _ = op_arguments('torch')
    inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
    out, _, states = op.selective_scan(*inputs, True, 'torch')
    states = states.new_zeros(3)
    with pytest.raises(RuntimeError, match='used different backends'):
        op.selective_scan_backward(out, states, *inputs, [True] * 8, 'torch')


def test_backward_uses_the_backend_of_forward(monkeypatch):
    from transmamba_mm.ops import dispatch

    used, module = [], dispatch._module('torch')
    inner = module.backward
    monkeypatch.setattr(
        module, 'backward', lambda *a: used.append(1) or inner(*a)
    )
    u = make_inputs()['u'].requires_grad_()
    with use_scan_backend('torch'):
        out = selective_scan(**{**make_inputs(), 'u': u})
    out.sum().backward()
    assert used == [1]


@pytest.mark.parametrize('compiled', [False, True])
def test_second_derivative_is_refused(compiled, backend):
    inputs = make_inputs()
    u = inputs.pop('u').requires_grad_()
    call = op.selective_scan if compiled else None
    if compiled:  # the autograd of the operator itself
        rest = [True, None, [False], False, True, True, backend]
        out = call(u, *inputs.values(), *rest)[0]
    else:
        out = selective_scan(u, **inputs, delta_softplus=True, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match='no second derivative'):
        grad.square().sum().backward()


def test_the_loop_has_a_second_derivative():
    inputs = make_inputs(1, 2, 3, 2, dtype=torch.float64)
    names = list(inputs)

    def function(*args):
        return selective_scan(
            **dict(zip(names, args)), delta_softplus=True, backend='reference'
        )

    args = [x.requires_grad_() for x in inputs.values()]
    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)


@pytest.mark.parametrize('merge', ['sum', 'stack'])
def test_the_loop_of_directions_passes_gradcheck(merge):
    inputs = make_multi(
        2, ('u', 'D'), batch=1, channels=2, length=3, N=2, dtype=torch.float64
    )
    names = list(inputs)
    orders = torch.stack([torch.randperm(3) for _ in range(2)])

    def function(*args):
        return multi_scan(
            **dict(zip(names, args)),
            delta_softplus=True,
            orders=orders,
            reverse=[False, True],
            merge=merge,
            backend='reference',
        )

    args = [x.requires_grad_() for x in inputs.values()]
    assert torch.autograd.gradcheck(function, args)


def test_nothing_is_kept_without_grad(backend):
    inputs = {k: v.requires_grad_() for k, v in make_inputs().items()}
    with torch.no_grad():
        out = selective_scan(**inputs, backend=backend)
    assert out.grad_fn is None and not out.requires_grad


def test_unused_output_has_no_gradient(backend):
    """Backward passes that reach only the last state."""
    u = make_inputs()['u'].requires_grad_()
    _, last = selective_scan(
        **{**make_inputs(), 'u': u}, return_last_state=True, backend=backend
    )
    assert not last.requires_grad


def test_an_output_that_is_a_view_becomes_a_tensor_of_its_own():
    out = torch.randn(2, 3, 4)[:, None]
    public = _public_out(out, True)
    assert not public._is_view() and public.shape == (2, 4, 3)
    assert torch.equal(public.mT, out[:, 0])


def test_jit_trace(backend):
    inputs = make_inputs()
    u = inputs.pop('u')
    u.requires_grad_()

    def function(u):
        return selective_scan(
            u, **inputs, delta_softplus=True, backend=backend
        )

    traced = torch.jit.trace(function, (u,), check_trace=False)
    assert 'transmamba_mm::selective_scan' in str(traced.graph)
    assert_close({'out': traced(u)}, {'out': function(u)})


def test_what_was_traced_without_gradients_has_them(backend):
    """As a saliency map of a model that was exported to be run."""
    inputs = make_inputs()
    u = inputs.pop('u')

    def function(u):
        return selective_scan(
            u, **inputs, delta_softplus=True, backend=backend
        )

    with torch.no_grad():
        traced = torch.jit.trace(function, (u,), check_trace=False)
    u.requires_grad_()
    grads = [
        torch.autograd.grad(f(u).square().sum(), u)[0]
        for f in (traced, function)
    ]
    torch.testing.assert_close(*grads)


def test_use_does_not_import_the_compiler():
    """Importing torch._dynamo takes a second; a scan must not cause it."""
    code = (
        'import sys, torch, transmamba_mm.ops as ops;'
        'before = "torch._dynamo" in sys.modules;'
        'x = torch.ones(1, 1, 1, requires_grad=True); a = torch.ones(1, 1);'
        'o = torch.zeros(2, 1, dtype=torch.int32);'
        'ops.selective_scan(x, x, a, a, a).sum().backward();'
        'ops.multi_scan(x, x, a, x, x, orders=o).sum().backward();'
        'assert before or "torch._dynamo" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)
