# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The operators ``transmamba_mm::selective_scan`` and its backward pass.

Their arguments have the shapes of the public functions, which are turned
into a :class:`~.backends.problem.ScanProblem` inside: so autograd sees one
node, and torch.compile one call whose implementation it does not trace.

They are defined with ``Library`` and not ``torch.library.custom_op``, whose
first call imports the compiler (1 to 2 s).
"""

import contextlib
import math
from typing import Optional

import torch
from torch import Tensor

from . import dispatch, transforms
from .backends import reference
from .backends.problem import COEFFICIENTS, TENSORS, TOKENS, ScanProblem
from .flops import register_flops
from .order_tables import checked_orders

# The tracer of TorchScript knows no bool[]: hence int[].
_INPUTS = (
    'Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D,'
    ' Tensor? z, Tensor? delta_bias, bool delta_softplus, Tensor? orders,'
    ' int[] reverse, bool by_step, bool merge'
)
_TENSORS = len(TENSORS)

_lib = torch.library.Library('transmamba_mm', 'FRAGMENT')
_lib.define(
    f'selective_scan({_INPUTS}, bool keep, str backend)'
    ' -> (Tensor out, Tensor last_state, Tensor states)'
)
_lib.define(
    f'selective_scan_backward(Tensor grad_out, Tensor states, {_INPUTS},'
    ' bool[] needs, str backend) -> Tensor[]'
)


def problem(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],
    z: Optional[Tensor],
    delta_bias: Optional[Tensor],
    delta_softplus: bool,
    orders: Optional[Tensor],
    reverse: list[int],
    by_step: bool,
    merge: bool,
) -> ScanProblem:
    """View checked arguments of the public functions in canonical form."""
    K = len(reverse)
    groups = _common_groups(B, C, K)
    return ScanProblem(
        _tokens(u),
        _tokens(delta),
        A if A.dim() == 3 else A.unsqueeze(0),
        _coefs(B, K, groups),
        _coefs(C, K, groups),
        D if D is None or D.dim() == 2 else D.unsqueeze(0),
        None if z is None else _tokens(z),
        delta_bias
        if delta_bias is None or delta_bias.dim() == 2
        else delta_bias.unsqueeze(0),
        delta_softplus,
        orders,
        tuple(map(bool, reverse)),
        by_step,
        merge,
    )


def _tokens(x: Tensor) -> Tensor:
    """(B, D, L) or (B, K, D, L) -> (B, K, L, D)."""
    return x.mT if x.dim() == 4 else x.mT.unsqueeze(1)


def _groups(x: Tensor, K: int) -> int:
    """Groups of B or C: 0 if it is constant in time."""
    if x.dim() == 2:
        return 0
    return 1 if x.dim() == 3 else x.shape[1] // K


def _common_groups(B: Tensor, C: Tensor, K: int) -> int:
    groups_B, groups_C = _groups(B, K), _groups(C, K)
    if groups_B == groups_C or not groups_B or not groups_C:
        return groups_B or groups_C
    return math.lcm(groups_B, groups_C)


def _coefs(x: Tensor, K: int, groups: int) -> Tensor:
    """(B, N, L) or (B, K * G, N, L) -> (B, K, G, L, N)."""
    if x.dim() == 2:
        return x
    x = x.mT
    if x.dim() == 3:
        x = x.unsqueeze(1).unsqueeze(1)
    elif K == 1:
        x = x.unsqueeze(1)
    else:
        x = x.unflatten(1, (K, -1))
    if x.shape[2] == groups:
        return x
    repeats = groups // x.shape[2]
    return x.unsqueeze(3).expand(-1, -1, -1, repeats, -1, -1).flatten(2, 3)


def _public(x: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`_tokens` on a contiguous result."""
    return x.mT if like.dim() == 4 else x.squeeze(1).mT


def _public_coefs(grad: Tensor, x: Tensor, K: int) -> Tensor:
    """Undo :func:`_coefs` on the gradient of ``x``."""
    if x.dim() == 2:
        return grad
    groups = _groups(x, K)
    if grad.shape[2] != groups:
        grad = grad.unflatten(2, (groups, -1)).sum(3)
    if x.dim() == 3:
        return grad.squeeze(2).squeeze(1).mT
    return grad.mT.flatten(1, 2)


def _with_checked_orders(p: ScanProblem) -> ScanProblem:
    if p.orders is None:
        return p
    return p._replace(orders=checked_orders(p.orders))


def _no_autocast(device_type: str):
    """Compute in the dtype of the tensors; entering autocast takes time."""
    if torch.amp.is_autocast_available(device_type) and (
        torch.is_autocast_enabled(device_type)
    ):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def differentiable_scan(*args) -> tuple[Tensor, Tensor]:
    """Run a backend which is plain autograd, without the operator.

    Args:
        args: as for the operator, without ``keep``.

    Returns:
        tuple[Tensor, Tensor]: ``out`` and ``last_state`` of the operator.
    """
    *inputs, backend = args
    p = problem(*inputs)
    if torch.compiler.is_compiling():
        module = reference
    else:
        module = dispatch.choose(backend, p, keep=True)
        p = _with_checked_orders(p)
    with _no_autocast(p.u.device.type):
        out, last, _ = module.forward(p, keep=True)
    out = out.squeeze(1) if p.merge else out
    return out.mT, last


def _forward(*args):
    *inputs, keep, backend = args
    p = problem(*inputs)
    name = dispatch.requested(backend)
    module = _module(name, p, keep)
    p = _with_checked_orders(p)
    if p.u.numel() == 0:
        out, last = p.new_out(), p.new_last_state().zero_()
        states = last.new_empty(module.states_shape(p) if keep else (0,))
    else:
        with _no_autocast(p.u.device.type):
            out, last, states = module.forward(p, keep)
    return _public_out(out, p.merge), last, states


def _module(name: str, p: ScanProblem, keep: bool):
    """Choose the backend of the operator's forward pass."""
    module = dispatch.choose(name, p, keep)
    if keep and getattr(module, 'DIFFERENTIABLE', False):
        raise RuntimeError(
            'this scan backend has no backward pass under torch.compile '
            'unless it is chosen by the argument backend='
        )
    return module


def _public_out(out: Tensor, merge: bool) -> Tensor:
    """(B, 1 or K, L, D) -> (B, D, L) or (B, K, D, L), not as a view.

    Autograd forbids changing a view that was made inside of a node in place.
    """
    if out._is_view():
        out = out.new_empty(0).set_(out)
    batch, K, length, channels = out.shape
    if merge:
        size, strides = (batch, channels, length), (length * channels,)
    else:
        size = batch, K, channels, length
        strides = K * length * channels, length * channels
    return out.as_strided_(size, (*strides, 1, channels))


def _fake_forward(*args):
    *inputs, keep, backend = args
    p = problem(*inputs)
    shape = (0,)
    if keep:
        name = dispatch.requested(backend)
        if name == dispatch.FASTEST:  # nothing can be measured here
            name = dispatch.FIRST
        shape = _module(name, p, keep).states_shape(p)
    out, last = p.new_out(), p.new_last_state()
    out = out.squeeze(1) if p.merge else out
    return out.mT, last, last.new_empty(shape)


def _backward(grad_out, states, *args):
    *inputs, needs, backend = args
    tensors = inputs[:_TENSORS]
    p = problem(*inputs)
    module = dispatch.choose(backend, p, True)
    wanted = tuple(module.states_shape(p))
    # Traced or exported under `no_grad`, and differentiated nevertheless.
    unkept = tuple(states.shape) == (0,) != wanted
    if not unkept and tuple(states.shape) != wanted:
        raise RuntimeError(
            'the backward pass of selective_scan got states of shape '
            f'{tuple(states.shape)}, but its backend keeps '
            f'{wanted}: forward and backward used '
            'different backends. Do not change the backend between '
            'torch.compile and the run, or between a pass and its backward '
            'pass.'
        )
    p = _with_checked_orders(p)
    grad_out = grad_out.mT
    grad_out = grad_out.unsqueeze(1) if p.merge else grad_out
    if p.u.numel() == 0:
        pairs = zip(p.tensors, needs)
        grads = [torch.zeros_like(x) if need else None for x, need in pairs]
    else:
        with _no_autocast(p.u.device.type):
            if unkept:
                _, _, states = module.forward(p, True)
            grads = module.backward(p, states, grad_out, tuple(needs))
    return _public_grads(grads, tensors, needs, len(p.reverse))


def _public_grads(grads, tensors, needs, K) -> list[Tensor]:
    """View the needed gradients in the shapes of the public functions."""
    results = []
    for name, grad, x, need in zip(TENSORS, grads, tensors, needs):
        if not need:
            continue
        if name in TOKENS:
            grad = _public(grad, x)
        elif name in COEFFICIENTS:
            grad = _public_coefs(grad, x, K)
        elif grad.dim() != x.dim():
            grad = grad.squeeze(0)
        results.append(grad)
    return results


def _fake_backward(grad_out, states, *args):
    *inputs, needs, _ = args
    p = problem(*inputs)
    grads = [
        x.new_empty(x.shape) if need else None
        for x, need in zip(p.tensors, needs)
    ]
    return _public_grads(grads, inputs[:_TENSORS], needs, len(p.reverse))


def _setup_context(ctx, inputs, output):
    *rest, backend = inputs
    _, last, states = output
    ctx.settings = rest[_TENSORS:-1]
    orders = ctx.settings[1]
    # What 'auto' means may change before the backward pass.
    ctx.backend = dispatch.requested(backend)
    ctx.save_for_backward(states, orders, *rest[:_TENSORS])
    ctx.settings[1] = None
    ctx.mark_non_differentiable(last, states)
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx, grad_out, *_):
    num_inputs = len(ctx.needs_input_grad)
    if grad_out is None:
        return (None,) * num_inputs
    states, orders, *tensors = ctx.saved_tensors
    softplus, _, *settings = ctx.settings
    needs = list(ctx.needs_input_grad[:_TENSORS])
    transformed = transforms.in_torch_func()
    backward = _TransformedBackward.apply if transformed else _scan_backward
    grads = iter(
        backward(
            grad_out,
            states,
            *tensors,
            softplus,
            orders,
            *settings,
            needs,
            ctx.backend,
        )
    )
    found = [next(grads) if need else None for need in needs]
    return (*found, *(None,) * (num_inputs - _TENSORS))


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError(
        'selective_scan has no second derivative (create_graph=True); '
        "backend='reference' has one, slowly"
    )


for _name, _real, _fake in (
    ('selective_scan', _forward, _fake_forward),
    ('selective_scan_backward', _backward, _fake_backward),
):
    _lib.impl(_name, _real, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'transmamba_mm::{_name}', _fake, lib=_lib)
torch.library.register_autograd(
    'transmamba_mm::selective_scan',
    _autograd_backward,
    setup_context=_setup_context,
    lib=_lib,
)
torch.library.register_autograd(
    'transmamba_mm::selective_scan_backward',
    _refuse_second_derivative,
    lib=_lib,
)


@register_flops(torch.ops.transmamba_mm.selective_scan)
def _flops(
    u, delta, A, B, C, D, z, bias, softplus, orders, reverse, *args, **kwargs
) -> int:
    """Operations of K scans: two per multiplication and addition.

    As in the official implementations, a scan of L tokens, D channels and N
    states counts 9 L D N multiply-accumulates, and L D for each of the skip
    and the gate.
    """
    tokens = len(reverse) * u[0] * u[-2] * u[-1]
    per_token = 9 * A[-1] + (D is not None) + (z is not None)
    return 2 * tokens * per_token


_scan = torch.ops.transmamba_mm.selective_scan.default
_scan_backward = torch.ops.transmamba_mm.selective_scan_backward.default


class _Scan(torch.autograd.Function):
    """The autograd of the operator, for eager mode.

    That of ``register_autograd`` takes 45 us more, most of which goes into
    filling in default values which our schema does not have.
    """

    @staticmethod
    def forward(ctx, *args):
        output = _scan(*args)
        _setup_context(ctx, args, output)
        return output

    backward = staticmethod(_autograd_backward)


class _TransformedScan(torch.autograd.Function):
    """The same for the transforms of ``torch.func``."""

    @staticmethod
    def forward(*args):
        return _scan(*args)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_autograd_backward)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _one_by_one(_TransformedScan.apply, info, in_dims, args)


class _TransformedBackward(torch.autograd.Function):
    """The backward pass, for the transforms of ``torch.func``."""

    @staticmethod
    def forward(*args):
        return tuple(_scan_backward(*args))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    backward = staticmethod(_refuse_second_derivative)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _one_by_one(_TransformedBackward.apply, info, in_dims, args)


def _one_by_one(function, info, in_dims, args):
    """Call a function for each entry of the axis that vmap hides.

    It cannot join the batch: gradients of what samples share are wanted for
    each of them.
    """
    results = []
    for i in range(info.batch_size):
        entry = [
            x.select(axis, i)
            if isinstance(x, Tensor) and axis is not None
            else x
            for x, axis in zip(args, in_dims)
        ]
        results.append(function(*entry))
    stacked = tuple(map(torch.stack, zip(*results)))
    return stacked, (0,) * len(stacked)


def scan(*args) -> tuple[Tensor, Tensor, Tensor]:
    """Call the operator by the shortest way.

    Args:
        args: of the operator; ``keep`` tells whether it needs a gradient.
    """
    keep = args[-2]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _scan(*args)
    if transforms.in_torch_func():
        # Below the transforms is not seen what needs a gradient.
        return _TransformedScan.apply(*args[:-2], True, args[-1])
    return _Scan.apply(*args) if keep else _scan(*args)
