# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'torch'``: fast selective scan in plain PyTorch, any device.

The recurrence runs over blocks of ``rows`` batch items by ``steps`` time
steps.  The tensors of a block lie in a few buffers which every block reuses
and which fit in cache, so that time goes to arithmetic, not to memory:

* State tensors are ``(steps, rows, G, N, D / G)``.  With channels innermost,
  ``delta`` and ``A`` are contiguous vectors and ``B`` and ``C`` are scalars
  of the inner loop, the two cases which PyTorch vectorises.
* One time step is one in-place fused multiply-add.
* The decay is ``2 ** (delta * A * log2(e))``: PyTorch's CPU kernel of
  ``exp2`` is about four times faster than that of ``exp``.
* Sums over the state or the channels are products with a single row
  (``bmm`` of ``(1, K)`` by ``(K, M)``), about twice as fast as multiplying
  and then summing.
* Nothing is divided by a product of decays and no logarithm is summed:
  stiff inputs (large ``delta * A``) underflow to zero and never overflow.
* The backward pass keeps the state at the start of every block and computes
  the others again.

Where each kernel launch costs (any device but the CPU), blocks are larger and
their time steps are advanced by :func:`_two_level`, with about
``3 * sqrt(steps)`` launches in place of ``steps``.
"""

import math
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E = math.log2(math.e)

# Elements of one time step and of one block, measured on CPU for D * N from
# 384 to 12288 and batches of 1 to 256: a step must be large beside the cost
# of a call (about 1 us) and four blocks must stay in a shared L3 cache.
STEP_ELEMENTS = 48 * 1024
BLOCK_ELEMENTS = 512 * 1024
# A block's start state is what the backward pass keeps: at least MIN_STEPS
# between two bounds that memory to N / MIN_STEPS times that of ``u``.
MIN_STEPS, MAX_STEPS = 8, 64
# The same for devices that pay per launch.
DEVICE_BLOCK_ELEMENTS = 16 * 1024 * 1024
DEVICE_MAX_STEPS = 1024

_log1p_is_warm = False


class Block(NamedTuple):
    """Half-open ranges of time steps and batch items."""

    t0: int
    t1: int
    b0: int
    b1: int

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return self.t1 - self.t0


class Plan(NamedTuple):
    """How a problem is cut into blocks."""

    rows: int
    steps: int
    two_level: bool


class Problem(NamedTuple):
    """Inputs in the layout and dtype of the computation.

    ``B`` and ``C`` are ``(L, B, G, N)``, or ``(G, N, D / G)`` if constant.
    """

    dt: Tensor  # (B, L, D), after bias and softplus
    du: Tensor  # (B, L, D), dt * u
    A: Tensor  # (G, N, D / G)
    B: Tensor
    C: Tensor
    plan: Plan

    def tokens(self, x: Tensor, at: Block) -> Tensor:
        """View a block of ``x (B, L, D)`` as (steps, rows, G, 1, D / G)."""
        x = x[at.b0 : at.b1, at.t0 : at.t1].transpose(0, 1)
        return x.unflatten(2, (self.A.shape[0], 1, -1))

    def coefs(self, x: Tensor, at: Block) -> Tensor:
        """View a block of ``B`` or ``C`` so that it multiplies states."""
        if x.dim() == 3:
            return x
        return x[at.t0 : at.t1, at.b0 : at.b1].unsqueeze(-1)


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
        out, last, _ = _forward(delta_softplus, inputs, keep=False)
    return out.transpose(1, 2), last


class _SelectiveScan(torch.autograd.Function):
    """Autograd rule of the scan; ``out`` is (B, L, D) here."""

    @staticmethod
    def forward(ctx, softplus, *inputs):
        out, last, kept = _forward(softplus, inputs, keep=True)
        ctx.softplus = softplus
        ctx.save_for_backward(*inputs, *kept)
        ctx.mark_non_differentiable(last)
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, _):
        if grad_out is None:
            return (None,) * 9
        *inputs, y, starts = ctx.saved_tensors
        with torch.autocast(grad_out.device.type, enabled=False):
            grads = _backward(
                ctx.softplus,
                inputs,
                y,
                starts,
                grad_out,
                ctx.needs_input_grad[1:],
            )
        return (None, *(_like(g, x) for g, x in zip(grads, inputs)))


def _forward(softplus, inputs, keep):
    """Compute out (B, L, D), last_state (B, D, N) and what backward keeps."""
    u, delta, A, B, C, D, z, bias = inputs
    rows_u, _, p = _prepare(u, delta, A, B, C, bias, softplus)
    y, starts, last = _scan(p, keep)
    if D is not None:
        y.addcmul_(rows_u, D.to(y.dtype))
    out = y if z is None else y * F.silu(_rows(z, y.dtype))
    last = last.transpose(2, 3).reshape(u.shape[0], *A.shape)
    gated = y if keep and z is not None and z.requires_grad else None
    return out.to(u.dtype), last, (gated, starts)


def _backward(softplus, inputs, y, starts, grad, need):
    """Compute gradients of all inputs in the computation's layout."""
    u, delta, A, B, C, D, z, bias = inputs
    need_u, need_delta, need_A, need_B, need_C, need_D, need_z, need_b = need
    rows_u, raw, p = _prepare(u, delta, A, B, C, bias, softplus)
    grad = _rows(grad.transpose(1, 2), p.dt.dtype)
    grad_z = grad_D = grad_bias = None
    if z is not None:
        rows_z = _rows(z, grad.dtype)
        if need_z:
            grad_z = torch.ops.aten.silu_backward(grad * y, rows_z)
        grad = grad * F.silu(rows_z)
    if need_D:
        grad_D = (grad * rows_u).flatten(0, 1).sum(0)
    need_dt = need_delta or need_b
    du, dt, grad_A, grad_B, grad_C = _adjoint(
        p, starts, grad, (need_u or need_dt, need_dt, need_A, need_B, need_C)
    )
    grad_u = None
    if need_u:
        grad_u = du * p.dt
        if D is not None:
            grad_u.addcmul_(grad, D.to(grad.dtype))
    if need_dt:
        dt.addcmul_(du, rows_u)
        if softplus:
            dt = torch.ops.aten.softplus_backward(dt, raw, 1, 20)
        if need_b:
            grad_bias = dt.flatten(0, 1).sum(0)
    if need_A:
        grad_A = _channels_first(grad_A)
    return (
        None if grad_u is None else grad_u.transpose(1, 2),
        None if dt is None else dt.transpose(1, 2),
        grad_A,
        _coefs_grad(grad_B, B),
        _coefs_grad(grad_C, C),
        grad_D,
        None if grad_z is None else grad_z.transpose(1, 2),
        grad_bias,
    )


def _prepare(u, delta, A, B, C, bias, softplus):
    """Bring the inputs to :class:`Problem`; also u and delta before softplus.

    The cost is a few passes over (B, L, D), 1 / N of a pass over the states.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    rows_u = _rows(u, dtype)
    raw = _rows(delta, dtype)
    if bias is not None:
        raw = raw + bias.to(dtype)
    dt = _softplus(raw) if softplus else raw
    groups = max([x.shape[1] for x in (B, C) if x.dim() == 4] or [1])
    problem = Problem(
        dt,
        dt * rows_u,
        _channels_last(A, groups, dtype),
        _to_coefs(B, groups, dtype),
        _to_coefs(C, groups, dtype),
        make_plan(*rows_u.shape, A.shape[1], u.device.type == 'cpu'),
    )
    return rows_u, raw, problem


def make_plan(B: int, L: int, D: int, N: int, on_cpu: bool) -> Plan:
    """Choose the blocks of a problem of this size."""
    step = STEP_ELEMENTS if on_cpu else DEVICE_BLOCK_ELEMENTS // MIN_STEPS
    block = BLOCK_ELEMENTS if on_cpu else DEVICE_BLOCK_ELEMENTS
    most = MAX_STEPS if on_cpu else DEVICE_MAX_STEPS
    rows = min(B, max(1, step // max(1, D * N)))
    rows = _even(B, rows)
    steps = block // max(1, rows * D * N)
    steps = _even(L, min(most, max(MIN_STEPS, steps)))
    return Plan(rows, steps, two_level=not on_cpu and steps > 16)


def _even(total: int, most: int) -> int:
    """Size of the parts if ``total`` is cut evenly into parts <= most."""
    return math.ceil(total / math.ceil(total / most)) if total else 1


def _softplus(x: Tensor) -> Tensor:
    """Softplus (threshold 20), free of a tenfold slowdown of log1p.

    On AVX-512 the vectorised log1p ends in a masked load of the constant for
    an argument of -0.0.  Until that constant's page has been read once, every
    such load traps into microcode although the mask is empty: 10 ns per
    element and not 0.5 ns.  Reading it once, by log1p(-0.0), avoids that.
    """
    global _log1p_is_warm
    if not _log1p_is_warm and x.device.type == 'cpu':
        _log1p_is_warm = True
        for dtype in (torch.float32, torch.float64):
            torch.log1p(torch.full((16,), -0.0, dtype=dtype))
    return F.softplus(x)


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """View (B, D, L) as (B, L, D), copied if channels are not contiguous."""
    x = x.transpose(1, 2).to(dtype)
    return x if x.stride(2) == 1 else x.contiguous()


def _channels_last(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(D, N) -> (G, N, D / G)."""
    x = x.to(dtype).unflatten(0, (groups, -1))
    return x.transpose(1, 2).contiguous()


def _channels_first(x: Tensor) -> Tensor:
    """(G, N, D / G) -> (D, N)."""
    return x.transpose(1, 2).flatten(0, 1)


def _to_coefs(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    if x.dim() == 2:
        return _channels_last(x, groups, dtype)
    if x.dim() == 3:
        x = x.unsqueeze(1)
    return x.to(dtype).permute(3, 0, 1, 2)


def _coefs_grad(grad: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    """Undo :func:`_to_coefs` on a gradient."""
    if grad is None:
        return None
    if x.dim() == 2:
        return _channels_first(grad)
    grad = grad.permute(1, 2, 3, 0)
    return grad if x.dim() == 4 else grad.squeeze(1)


def _like(grad: Optional[Tensor], x: Optional[Tensor]) -> Optional[Tensor]:
    return None if grad is None else grad.to(x.dtype)


class _Buffers:
    """Storage for the blocks of one group of rows.

    The lists hold one view per time step: making them once, and not for
    every block, halves the cost of a small step.
    """

    def __init__(self, p: Problem, rows: int, adjoint: bool):
        shape = (rows, *p.A.shape)
        new, steps = p.dt.new_empty, p.plan.steps
        self.decay = new(steps, *shape)
        self.state = new(steps + 1, *shape)  # [0] is the state before
        self.sums = new(steps, rows, p.A.shape[0], p.A.shape[2])
        self.decays = self.decay.unbind(0)
        self.states = self.state.unbind(0)
        if adjoint:
            self.grad = new(steps, *shape)
            self.work = new(steps, *shape)
            self.grads = self.grad.unbind(0)


def _blocks(p: Problem, reverse: bool):
    """Yield, for each group of rows, (first, last, row count, blocks)."""
    B, L, _ = p.dt.shape
    rows, steps, _ = p.plan
    for b0 in range(0, B, rows):
        b1 = min(B, b0 + rows)
        at = [
            Block(t0, min(L, t0 + steps), b0, b1) for t0 in range(0, L, steps)
        ]
        at = list(enumerate(at))
        yield b0, b1, at[::-1] if reverse else at


def _run_states(p: Problem, buf: _Buffers, at: Block) -> Tensor:
    """Fill decay and state of a block from ``buf.state[0]``.

    Returns:
        Tensor: the states (steps, rows, G, N, D / G).
    """
    T = at.steps
    decay, state = buf.decay[:T], buf.state[1 : T + 1]
    torch.mul(p.tokens(p.dt, at), p.A * LOG2_E, out=decay).exp2_()
    torch.mul(p.tokens(p.du, at), p.coefs(p.B, at), out=state)
    if p.plan.two_level:
        state[0].addcmul_(decay[0], buf.state[0])
        _two_level(decay[1:], state)
    else:
        prev = buf.states[0]
        for a, h in zip(buf.decays[:T], buf.states[1 : T + 1]):
            prev = h.addcmul_(a, prev)
    return state


def _run_adjoints(p: Problem, buf: _Buffers, carry: Tensor, T: int) -> None:
    """Accumulate ``grad[t] += decay[t + 1] * grad[t + 1]`` backwards.

    ``carry`` holds that product of the block after this one, and afterwards
    the one for the block before.
    """
    grads = buf.grads[:T]
    grads[-1].add_(carry)
    if p.plan.two_level:
        flipped = buf.grad[:T].flip(0)
        _two_level(buf.decay[1:T].flip(0), flipped)
        buf.grad[:T] = flipped.flip(0)
    else:
        after = grads[-1]
        for a, g in zip(buf.decays[T - 1 : 0 : -1], grads[-2::-1]):
            after = g.addcmul_(a, after)
    torch.mul(buf.decays[0], grads[0], out=carry)


def _two_level(decay: Tensor, state: Tensor) -> None:
    """Run ``state[t] += decay[t - 1] * state[t - 1]`` with few launches.

    All segments of about ``sqrt(steps)`` advance together as if nothing came
    before; then each segment's end is added to the next segment, weighted by
    the product of the decays since.  Those products only multiply, so they
    may underflow, which is exact enough, and overflow only for ``A > 0``.
    """
    T = state.shape[0]
    width = max(1, math.isqrt(T))
    count = T // width
    shape = (count, width, *state.shape[1:])
    segments = state[: count * width].view(shape)
    # weights[:, 0] carries the step from the segment before.
    weights = torch.cat((torch.ones_like(state[:1]), decay))
    weights = weights[: count * width].view(shape)
    for j in range(1, width):
        segments[:, j].addcmul_(weights[:, j], segments[:, j - 1])
        weights[:, j].mul_(weights[:, j - 1])
    for k in range(1, count):
        segments[k, -1].addcmul_(weights[k, -1], segments[k - 1, -1])
    segments[1:, :-1].addcmul_(weights[1:, :-1], segments[:-1, -1:])
    for t in range(count * width, T):
        state[t].addcmul_(decay[t - 1], state[t - 1])


def _sum_states(x: Tensor, coef: Tensor, out: Tensor) -> Tensor:
    """Sum ``x * coef`` over the state axis N into (steps, rows, G, D / G)."""
    N, channels = x.shape[3:]
    if N == 1:
        return torch.mul(x, coef, out=out.unsqueeze(3)).squeeze(3)
    if coef.dim() == 3:
        return torch.sum(x * coef, 3, out=out)
    torch.bmm(
        coef.reshape(-1, 1, N),
        x.view(-1, N, channels),
        out=out.view(-1, 1, channels),
    )
    return out


def _sum_channels(grad: Tensor, x: Tensor, coef: Tensor) -> Tensor:
    """Gradient of a coefficient of the shape of ``coef`` (a block of it)."""
    if coef.dim() == 3:
        return (grad * x).flatten(0, 1).sum(0)
    N, channels = x.shape[3:]
    total = torch.bmm(
        grad.reshape(-1, 1, channels), x.view(-1, N, channels).transpose(1, 2)
    )
    return total.view(x.shape[:4])


def _scan(p: Problem, keep: bool):
    """Compute y (B, L, D), the block starts and the last state."""
    B, L, D = p.dt.shape
    y = p.dt.new_empty(B, L, D)
    last = p.dt.new_zeros(B, *p.A.shape)
    count = math.ceil(L / p.plan.steps)
    starts = p.dt.new_empty(count if keep else 0, *last.shape)
    buf = None
    for b0, b1, blocks in _blocks(p, reverse=False):
        if buf is None or buf.state.shape[1] != b1 - b0:
            buf = _Buffers(p, b1 - b0, adjoint=False)
        buf.states[0].zero_()
        for k, at in blocks:
            if keep:
                starts[k, b0:b1] = buf.states[0]
            state = _run_states(p, buf, at)
            sums = buf.sums[: at.steps]
            sums = _sum_states(state, p.coefs(p.C, at), sums)
            y[b0:b1, at.t0 : at.t1] = sums.flatten(2).transpose(0, 1)
            buf.states[0].copy_(buf.states[at.steps])
        last[b0:b1] = buf.states[0]
    return y, starts, last


def _adjoint(p: Problem, starts: Tensor, grad: Tensor, need):
    """Compute the gradients of du, dt (direct), A, B and C.

    With h the states and g their gradients, going backwards in time:
    ``g[t] = grad[t] C[t] + decay[t + 1] g[t + 1]``; the exponent
    ``dt[t] A`` of the decay receives ``e[t] = g[t] h[t - 1] decay[t]``.
    """
    need_du, need_dt, need_A, need_B, need_C = need
    need_e = need_dt or need_A
    B, L, D = p.dt.shape
    zeros, new = p.dt.new_zeros, p.dt.new_empty
    grad_du = new(B, L, D) if need_du else None
    grad_dt = new(B, L, D) if need_dt else None
    grad_A = zeros(p.A.shape) if need_A else None
    grad_B = zeros(p.B.shape) if need_B else None
    grad_C = zeros(p.C.shape) if need_C else None
    buf = None
    for b0, b1, blocks in _blocks(p, reverse=True):
        if buf is None or buf.state.shape[1] != b1 - b0:
            buf = _Buffers(p, b1 - b0, adjoint=True)
        carry = zeros(buf.state.shape[1:])
        for k, at in blocks:
            T = at.steps
            where = (slice(b0, b1), slice(at.t0, at.t1))
            dt, du = p.tokens(p.dt, at), p.tokens(p.du, at)
            B_at, C_at = p.coefs(p.B, at), p.coefs(p.C, at)
            grad_at = p.tokens(grad, at)
            sums = buf.sums[:T]
            buf.states[0].copy_(starts[k, b0:b1])
            h = _run_states(p, buf, at)
            if need_C:
                total = _sum_channels(grad_at, h, C_at)
                _add_block(grad_C, total, at)
            if not (need_du or need_B or need_e):
                continue
            g = torch.mul(grad_at, C_at, out=buf.grad[:T])
            _run_adjoints(p, buf, carry, T)
            if need_du:
                sums = _sum_states(g, B_at, sums)
                grad_du[where] = sums.flatten(2).transpose(0, 1)
            if need_B:
                _add_block(grad_B, _sum_channels(du, g, B_at), at)
            if need_e:
                e = g.mul_(buf.state[:T]).mul_(buf.decay[:T])
                work = buf.work[:T]
            if need_dt:
                torch.mul(e, p.A, out=work)
                torch.sum(work, 3, out=sums)
                grad_dt[where] = sums.flatten(2).transpose(0, 1)
            if need_A:
                torch.mul(e, dt, out=work)
                grad_A += work.flatten(0, 1).sum(0)
    return grad_du, grad_dt, grad_A, grad_B, grad_C


def _add_block(total: Tensor, part: Tensor, at: Block) -> None:
    """Put a block's share of the gradient of B or C in its place."""
    if total.dim() == 3:
        total += part
    else:
        total[at.t0 : at.t1, at.b0 : at.b1] = part
