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

from . import torch_blocks as ops
from .torch_blocks import Block, Plan

LOG2_E = math.log2(math.e)
aten = torch.ops.aten


def probe() -> Optional[str]:
    """Tell why the backend cannot be used; None because it always can."""
    return None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether inputs of this device and dtype are served."""
    return True


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],
    z: Optional[Tensor],
    delta_bias: Optional[Tensor],
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Scan checked inputs; see :func:`transmamba_mm.ops.selective_scan`.

    Returns:
        ``out (B, D, L)`` and ``last_state (B, D, N)``, the latter in the
        dtype of the computation and without gradient.
    """
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in inputs
    ):
        out, last = _SelectiveScan.apply(delta_softplus, *inputs)
    else:
        out, last, _, _ = _forward(_problem(delta_softplus, inputs))
    return out.transpose(1, 2), last


class _SelectiveScan(torch.autograd.Function):
    """Autograd rule of the scan; ``out`` is (B, L, D) here."""

    @staticmethod
    def forward(ctx, softplus, *inputs):
        z = inputs[6]
        out, last, starts, ungated = _forward(
            _problem(softplus, inputs),
            keep_starts=True,
            keep_ungated=z is not None and z.requires_grad,
        )
        ctx.softplus = softplus
        ctx.save_for_backward(*inputs, starts, ungated)
        ctx.mark_non_differentiable(last)
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    def backward(ctx, grad_out, _):
        if torch.is_grad_enabled():
            raise RuntimeError(
                'selective_scan has no second derivative (create_graph=True);'
                " backend='reference' has one, slowly"
            )
        if grad_out is None:
            return (None,) * 9
        *inputs, starts, ungated = ctx.saved_tensors
        with torch.autocast(grad_out.device.type, enabled=False):
            grads = _backward(
                _problem(ctx.softplus, inputs),
                inputs,
                grad_out,
                starts,
                ungated,
                ctx.needs_input_grad[1:],
            )
        return (None, *grads)


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
    out_dtype: torch.dtype

    def zeros(self, *shape) -> Tensor:
        return self.A.new_zeros(shape)

    def broadcast(self, tokens: Tensor) -> Tensor:
        """View (steps, rows, D) so that it multiplies states."""
        return tokens.unflatten(2, (self.A.shape[0], 1, -1))


def _problem(softplus, inputs) -> _Problem:
    u, delta, A, B, C, D, z, bias = inputs
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    groups = max([x.shape[1] for x in (B, C) if x.dim() == 4] or [1])
    batch, channels, length = u.shape
    on_cpu = u.device.type == 'cpu'
    return _Problem(
        ops.channels_inner(u, dtype),
        ops.channels_inner(delta, dtype),
        ops.to_states(A, groups, dtype),
        ops.to_coefs(B, groups, dtype),
        ops.to_coefs(C, groups, dtype),
        None if D is None else D.to(dtype),
        None if z is None else ops.channels_inner(z, dtype),
        None if bias is None else bias.to(dtype),
        softplus,
        ops.make_plan(batch, length, channels, A.shape[1], on_cpu),
        u.dtype,
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


def _forward(p: _Problem, keep_starts=False, keep_ungated=False):
    """Compute out (B, L, D), the last state (B, D, N) and what is kept.

    Kept are the states at the start of every block, (blocks, B, G, N, D / G),
    and the output before the gate, (B, L, D) or None.
    """
    batch, length, _ = p.u.shape
    out = p.u.new_empty(p.u.shape, dtype=p.out_dtype)
    last = p.zeros(batch, *p.A.shape)
    count = math.ceil(length / p.plan.steps) if keep_starts else 0
    starts = p.A.new_empty(count, *last.shape)
    ungated = p.A.new_empty(p.u.shape) if keep_ungated else None
    buf = None
    for blocks in ops.row_groups(p.plan, batch, length):
        for k, at in enumerate(blocks):
            rows = slice(at.b0, at.b1)
            if buf is None or buf.rows != at.b1 - at.b0:
                buf = _Buffers(p, at.b1 - at.b0, adjoint=False)
            buf.states[0].copy_(last[rows])
            if keep_starts:
                starts[k, rows] = buf.states[0]
            u, _, _, _, state = _run_states(p, buf, at)
            y = buf.y[: len(u)]
            ops.sum_states(state, ops.coefs_at(p.C, at), y)
            if p.D is not None:
                y.addcmul_(u, p.D)
            if keep_ungated:
                at.of(ungated).copy_(y)
            if p.z is not None:
                y.mul_(aten.silu.out(at.of(p.z), out=buf.raw[: len(u)]))
            at.of(out).copy_(y)
            last[rows] = buf.states[len(u)]
    last = last.transpose(2, 3).flatten(1, 2)
    return out, last, starts, ungated


def _backward(p: _Problem, inputs, grad_out, starts, ungated, need):
    """Compute the gradients of the eight inputs, None where not needed.

    With h the states and g their gradients, going backwards in time,
    ``g[t] = grad[t] C[t] + decay[t + 1] g[t + 1]``; the exponent
    ``dt[t] A`` of the decay receives ``e[t] = g[t] h[t - 1] decay[t]``.
    """
    need_u, need_delta, need_A, need_B, need_C, need_D, need_z, need_b = need
    need_dt = need_delta or need_b
    need_states = need_u or need_dt or need_A or need_B
    batch, length, channels = p.u.shape
    grad_out = ops.channels_inner(grad_out.transpose(1, 2), p.A.dtype)

    def tokens(x, needed):
        return p.u.new_empty(p.u.shape, dtype=x.dtype) if needed else None

    u_, delta_, A_, B_, C_, D_, z_, bias_ = inputs
    grad_u = tokens(u_, need_u)
    grad_delta = tokens(delta_, need_delta)
    grad_z = tokens(z_, need_z)
    grad_A = p.zeros(*p.A.shape) if need_A else None
    grad_B = p.zeros(*p.B.shape) if need_B else None
    grad_C = p.zeros(*p.C.shape) if need_C else None
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
                    torch.mul(grad, at.of(ungated), out=work)
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
    return (
        None if grad_u is None else grad_u.transpose(1, 2),
        None if grad_delta is None else grad_delta.transpose(1, 2),
        None if grad_A is None else ops.from_states(grad_A).to(A_.dtype),
        None if grad_B is None else ops.from_coefs(grad_B, B_).to(B_.dtype),
        None if grad_C is None else ops.from_coefs(grad_C, C_).to(C_.dtype),
        None if grad_D is None else grad_D.to(D_.dtype),
        None if grad_z is None else grad_z.transpose(1, 2),
        None if grad_bias is None else grad_bias.to(bias_.dtype),
    )
