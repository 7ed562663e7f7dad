# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'torch'``: fast selective scan in plain PyTorch, any device.

The work is cut into blocks of ``rows`` batch items by ``steps`` time steps.
All that belongs to a block, from softplus to the gate, is computed in a few
buffers which every block reuses and which fit in cache, so that time goes to
arithmetic, not to memory and page faults:

* State tensors are ``(steps, rows, G, N, D / G)``.  With channels innermost,
  ``delta`` and ``A`` are contiguous vectors and ``B`` and ``C`` are scalars
  of the inner loop, the two cases which PyTorch vectorises.
* One time step is one in-place fused multiply-add.
* The decay is ``2 ** (delta * A * log2(e))``: PyTorch's CPU kernel of
  ``exp2`` is about four times faster than that of ``exp``.
* Sums over the states or the channels are products with a single row
  (``bmm`` of ``(1, K)`` by ``(K, M)``), about twice as fast as multiplying
  and then summing.
* Nothing is divided by a product of decays and no logarithm is summed:
  stiff inputs (large ``delta * A``) underflow to zero and never overflow.
* The backward pass keeps the state at the start of every block and computes
  the others again.

Where each kernel launch costs (any device but the CPU), blocks are larger and
their time steps are advanced by two-level scans, with about
``3 * sqrt(steps)`` launches in place of ``steps``.
"""

import math
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from . import per_direction
from . import torch_blocks as ops
from .problem import ScanProblem
from .torch_blocks import Block, Plan

LOG2_E = math.log2(math.e)
aten = torch.ops.aten


def probe() -> Optional[str]:
    """Tell why the backend cannot be used; None because it always can."""
    return None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether inputs of this device and dtype are served."""
    return True


def states_shape(p: ScanProblem) -> tuple[int, ...]:
    """Shape of the kept states, those before each block."""
    batch, K, length, channels, N = p.sizes
    is_constant = p.B.dim() == p.C.dim() == 2
    G, channels = 1 if is_constant else K * p.groups, K * channels
    plan = _plan(p.u, batch, length, channels, N)
    return -(-length // plan.steps), batch, G, N, channels // G


def forward(p: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; see :class:`ScanProblem`."""
    return per_direction.forward(_scan, p, keep, wide=True)


def backward(
    p: ScanProblem, states: Tensor, grad_out: Tensor, needs: tuple[bool, ...]
) -> list[Optional[Tensor]]:
    """Compute the gradients; see :class:`ScanProblem`."""
    return per_direction.backward(
        _scan_backward, p, states, grad_out, needs, wide=True
    )


class _Problem(NamedTuple):
    """Inputs in the layout and dtype of the computation."""

    u: Tensor  # (B, L, D), as are delta and z
    delta: Tensor
    A: Tensor  # (G, N, D / G)
    B: Tensor  # (L, B, G, N), or (G, N, D / G) if constant
    C: Tensor
    D: Optional[Tensor]  # (D,)
    z: Optional[Tensor]
    bias: Optional[Tensor]  # (D,)
    softplus: bool
    plan: Plan

    def zeros(self, *shape) -> Tensor:
        return self.A.new_zeros(shape)

    def broadcast(self, tokens: Tensor) -> Tensor:
        """View (steps, rows, D) so that it multiplies states."""
        return tokens.unflatten(2, (self.A.shape[0], 1, -1))


def _plan(u: Tensor, batch, length, channels, N) -> Plan:
    return ops.make_plan(batch, length, channels, N, u.device.type == 'cpu')


def _problem(p: ScanProblem) -> _Problem:
    """Convert one direction, in the order of memory."""
    dtype = p.wide_dtype
    batch, _, length, channels, N = p.sizes
    D, bias = p.D, p.delta_bias
    return _Problem(
        ops.channels_inner(p.u, dtype),
        ops.channels_inner(p.delta, dtype),
        ops.to_states(p.A[0], p.groups, dtype),
        ops.to_coefs(p.B, p.groups, dtype),
        ops.to_coefs(p.C, p.groups, dtype),
        None if D is None else D[0].to(dtype),
        None if p.z is None else ops.channels_inner(p.z, dtype),
        None if bias is None else bias[0].to(dtype),
        p.delta_softplus,
        _plan(p.u, batch, length, channels, N),
    )


class _Buffers:
    """Storage for the blocks of one group of batch items.

    The lists hold one view per time step: making them once, and not for
    every block, halves the cost of a small step.
    """

    def __init__(self, p: _Problem, rows: int, adjoint: bool):
        self.rows = rows
        steps, state = p.plan.steps, (rows, *p.A.shape)
        tokens = (steps, rows, p.u.shape[2])
        new = p.A.new_empty
        # delta + bias, dt, dt * u, y
        self.raw, self.dt, self.du, self.y = (new(tokens) for _ in range(4))
        self.decay = new(steps, *state)
        self.state = new(steps + 1, *state)  # [0] is the one before
        self.decays = self.decay.unbind(0)
        self.states = self.state.unbind(0)
        if adjoint:
            self.gdt, self.work, self.gated = (new(tokens) for _ in range(3))
            self.grad, self.product = (new(steps, *state) for _ in range(2))
            self.grads = self.grad.unbind(0)
            self.carry = new(state)


def _run_states(p: _Problem, buf: _Buffers, at: Block):
    """Compute a block's tokens and states from ``buf.state[0]``.

    Returns:
        ``u``, ``delta + bias``, ``dt``, ``dt * u``, all (steps, rows, D),
        and the states (steps, rows, G, N, D / G).
    """
    T = at.t1 - at.t0
    u, raw = at.of(p.u), at.of(p.delta)
    if p.bias is not None:
        raw = torch.add(raw, p.bias, out=buf.raw[:T])
    dt = ops.softplus(raw, out=buf.dt[:T]) if p.softplus else raw
    du = torch.mul(dt, u, out=buf.du[:T])
    decay, state = buf.decay[:T], buf.state[1 : T + 1]
    torch.mul(p.broadcast(dt), p.A * LOG2_E, out=decay).exp2_()
    torch.mul(p.broadcast(du), ops.coefs_at(p.B, at), out=state)
    if p.plan.two_level:
        state[0].addcmul_(decay[0], buf.state[0])
        ops.advance_two_level(decay[1:], state)
    else:
        ops.advance(buf.decays[:T], buf.states[1 : T + 1], buf.states[0])
    return u, raw, dt, du, state


def _run_adjoints(p: _Problem, buf: _Buffers, T: int) -> None:
    """Run ``grad[t] += decay[t + 1] * grad[t + 1]`` backwards.

    ``buf.carry`` holds that product of the block after this one, and
    afterwards the one for the block before.
    """
    grads = buf.grads[:T]
    grads[-1].add_(buf.carry)
    if p.plan.two_level:
        flipped = buf.grad[:T].flip(0)
        ops.advance_two_level(buf.decay[1:T].flip(0), flipped)
        buf.grad[:T] = flipped.flip(0)
    else:
        ops.advance(buf.decays[T - 1 : 0 : -1], grads[-2::-1], grads[-1])
    torch.mul(buf.decays[0], grads[0], out=buf.carry)


def _scan(problem: ScanProblem, keep: bool):
    """Compute :func:`forward` of one direction in the order of memory."""
    p = _problem(problem)
    batch, length, _ = p.u.shape
    result = problem.new_out()
    out = result.squeeze(1)
    last = p.zeros(batch, *p.A.shape)
    starts = p.A.new_empty(states_shape(problem) if keep else (0,))
    buf = None
    for blocks in ops.row_groups(p.plan, batch, length):
        for k, at in enumerate(blocks):
            rows = slice(at.b0, at.b1)
            if buf is None or buf.rows != at.b1 - at.b0:
                buf = _Buffers(p, at.b1 - at.b0, adjoint=False)
            buf.states[0].copy_(last[rows])
            if keep:
                starts[k, rows] = buf.states[0]
            u, _, _, _, state = _run_states(p, buf, at)
            y = buf.y[: len(u)]
            ops.sum_states(state, ops.coefs_at(p.C, at), y)
            if p.D is not None:
                y.addcmul_(u, p.D)
            if p.z is not None:
                y.mul_(aten.silu.out(at.of(p.z), out=buf.raw[: len(u)]))
            at.of(out).copy_(y)
            last[rows] = buf.states[len(u)]
    last = last.transpose(2, 3).flatten(1, 2)
    return result, last.unsqueeze(1).contiguous(), starts


def _scan_backward(problem: ScanProblem, starts, grad_out, need):
    """Compute :func:`backward` of one direction in the order of memory.

    With h the states and g their gradients, going backwards in time,
    ``g[t] = grad[t] C[t] + decay[t + 1] g[t + 1]``; the exponent
    ``dt[t] A`` of the decay receives ``e[t] = g[t] h[t - 1] decay[t]``.
    """
    p = _problem(problem)
    need_u, need_delta, need_A, need_B, need_C, need_D, need_z, need_b = need
    need_dt = need_delta or need_b
    need_states = need_u or need_dt or need_A or need_B
    batch, length, channels = p.u.shape
    grad_out = ops.channels_inner(grad_out, p.A.dtype)

    def tokens(x, needed):
        return p.u.new_empty(p.u.shape, dtype=x.dtype) if needed else None

    u_, delta_, A_, B_, C_, D_, z_, bias_ = problem.tensors
    grad_u = tokens(u_, need_u)
    grad_delta = tokens(delta_, need_delta)
    grad_z = tokens(z_, need_z)
    grad_A = p.zeros(*p.A.shape) if need_A else None
    grad_B = ops.new_coefs_grad(p.B) if need_B else None
    grad_C = ops.new_coefs_grad(p.C) if need_C else None
    grad_D = p.zeros(channels) if need_D else None
    grad_bias = p.zeros(channels) if need_b else None
    buf = None
    for blocks in ops.row_groups(p.plan, batch, length):
        for k, at in reversed(list(enumerate(blocks))):
            if buf is None or buf.rows != at.b1 - at.b0:
                buf = _Buffers(p, at.b1 - at.b0, adjoint=True)
            if at is blocks[-1]:
                buf.carry.zero_()
            T = at.t1 - at.t0
            buf.states[0].copy_(starts[k, at.b0 : at.b1])
            u, raw, dt, du, h = _run_states(p, buf, at)
            B, C = ops.coefs_at(p.B, at), ops.coefs_at(p.C, at)
            grad = at.of(grad_out)
            gdu, gdt, work = buf.y[:T], buf.gdt[:T], buf.work[:T]
            if p.z is not None:
                z, gated = at.of(p.z), buf.gated[:T]
                if need_z:
                    ops.sum_states(h, C, gdt)
                    if p.D is not None:
                        gdt.addcmul_(u, p.D)
                    torch.mul(grad, gdt, out=work)
                    at.of(grad_z).copy_(aten.silu_backward(work, z))
                grad = torch.mul(grad, aten.silu.out(z, out=work), out=gated)
            if need_D:
                grad_D += torch.mul(grad, u, out=work).sum((0, 1))
            if need_C:
                grad_h = p.broadcast(grad)
                ops.add_coefs(grad_C, ops.sum_channels(grad_h, h, C), at)
            if not need_states:
                continue
            g = torch.mul(p.broadcast(grad), C, out=buf.grad[:T])
            _run_adjoints(p, buf, T)
            if need_B:
                part = ops.sum_channels(p.broadcast(du), g, B)
                ops.add_coefs(grad_B, part, at)
            if need_u or need_dt:
                ops.sum_states(g, B, gdu)
            if need_u:
                torch.mul(gdu, dt, out=work)
                if p.D is not None:
                    work.addcmul_(grad, p.D)
                at.of(grad_u).copy_(work)
            if need_dt or need_A:
                e = g.mul_(buf.state[:T]).mul_(buf.decay[:T])
            if need_A:
                product = buf.product[:T]
                torch.mul(e, p.broadcast(dt), out=product)
                grad_A += product.flatten(0, 1).sum(0)
            if need_dt:
                ops.sum_states(e, p.A, gdt, buf.product[:T])
                gdt.addcmul_(gdu, u)
                if p.softplus:
                    gdt = aten.softplus_backward(gdt, raw, 1, 20)
                if need_b:
                    grad_bias += gdt.sum((0, 1))
                if need_delta:
                    at.of(grad_delta).copy_(gdt)
    return [
        None if grad_u is None else grad_u.unsqueeze(1),
        None if grad_delta is None else grad_delta.unsqueeze(1),
        _fit(grad_A, A_, ops.from_states),
        _fit(grad_B, B_, ops.from_coefs),
        _fit(grad_C, C_, ops.from_coefs),
        _fit(grad_D, D_),
        None if grad_z is None else grad_z.unsqueeze(1),
        _fit(grad_bias, bias_),
    ]


def _fit(grad: Optional[Tensor], x: Tensor, undo=None) -> Optional[Tensor]:
    """Give a gradient the shape and dtype of its tensor."""
    if grad is None:
        return None
    grad = grad if undo is None else undo(grad)
    return grad.to(x.dtype).reshape(x.shape).contiguous()
