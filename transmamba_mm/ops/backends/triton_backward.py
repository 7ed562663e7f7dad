# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backward kernel of backend ``'triton'``; see :mod:`.triton_pieces`."""
# ruff: noqa: RUF005  (Triton knows no starred tuples)

import triton
import triton.language as tl

from .triton_pieces import (
    LN_2,
    OPAQUE,
    advance,
    cross,
    place,
    read,
    read_row,
    read_vector,
    sigmoid,
    step_size,
    token,
)


@triton.jit
def read_chunk(
    c,
    u,
    delta,
    z,
    B,
    C,
    grad_out,
    states,
    cells,
    order,
    length,
    is_reversed,
    in_d,
    n,
    u_sl,
    delta_sl,
    z_sl,
    grad_sl,
    B_sl,
    B_sn,
    C_sl,
    C_sn,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    CH: tl.constexpr,
    SPAN: tl.constexpr,
    BY_STEP: tl.constexpr,
    EVEN_D: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN_B: tl.constexpr,
    ALIGN_C: tl.constexpr,
):
    """Read what the steps of chunk c need, and the state kept before it."""
    kept = tl.zeros((), tl.int64) + c // SPAN
    h = tl.load(states + kept * SIZE + cells)
    xs = ()
    steps = ()
    Bs = ()
    dys = ()
    gates = ()
    Cs = ()
    for i in tl.static_range(CH):
        p, q = token(c * CH + i, length, is_reversed, order, BY_STEP, WIDE)
        xs = xs + (read(u + p * u_sl, in_d, not EVEN_D),)
        steps = steps + (read(delta + q * delta_sl, in_d, not EVEN_D),)
        Bs = Bs + (read_row(B, q * B_sl, n, B_sn, N, ALIGN_B),)
        dys = dys + (read(grad_out + p * grad_sl, in_d, not EVEN_D),)
        if z is not None:
            gates = gates + (read(z + p * z_sl, in_d, not EVEN_D),)
        Cs = Cs + (read_row(C, q * C_sl, n, C_sn, N, ALIGN_C),)
    return h, xs, steps, Bs, dys, gates, Cs


@triton.jit(do_not_specialize=OPAQUE)
def scan_backward(
    u,
    delta,
    B,
    C,
    D,
    z,
    delta_bias,
    orders,
    states,
    ends,
    spans,
    grad_out,
    grad_u,
    grad_delta,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_z,
    grad_delta_bias,
    length,
    channels,
    blocks,
    K,
    G,
    reverses,
    periods,
    u_sb,
    u_sk,
    u_sl,
    u_sd,
    delta_sb,
    delta_sk,
    delta_sl,
    delta_sd,
    z_sb,
    z_sk,
    z_sl,
    z_sd,
    grad_sb,
    grad_sk,
    grad_sl,
    grad_sd,
    B_sb,
    B_sk,
    B_sg,
    B_sl,
    B_sn,
    C_sb,
    C_sk,
    C_sg,
    C_sl,
    C_sn,
    D_sk,
    delta_bias_sk,
    N: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    CH: tl.constexpr,
    SPAN: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BY_STEP: tl.constexpr,
    EVEN_L: tl.constexpr,
    EVEN_D: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN_B: tl.constexpr,
    ALIGN_C: tl.constexpr,
):
    """Compute the gradients of every (sample, direction) pair.

    Those for ``u``, ``delta`` and ``z`` are (B, K, L, D); for ``A``, (B, K,
    blocks, segments, BN, BD); for ``B`` and ``C``, (B, K, blocks, L, N); for
    ``D`` and ``delta_bias``, (B, K, segments, D).

    A program goes back through one segment of ``periods`` * ``SPAN`` chunks.
    What the segments after it hand down comes from :func:`scan_adjoint`.
    """
    b, k, is_reversed, g, d, in_d = place(blocks, K, G, channels, reverses, BD)
    n = tl.arange(0, BN)
    in_n = n < N
    if WIDE:
        n = n.to(tl.int64)
    D_all = channels * G
    tokens = (b * K + k) * length * D_all + d
    u += b * u_sb + k * u_sk + d * u_sd
    delta += b * delta_sb + k * delta_sk + d * delta_sd
    grad_out += b * grad_sb + k * grad_sk + d * grad_sd
    if z is not None:
        z += b * z_sb + k * z_sk + d * z_sd
    B += b * B_sb + k * B_sk + g * B_sg
    C += b * C_sb + k * C_sk + g * C_sg
    order = orders
    if order is not None:
        order += k * length
    skip = read_vector(D, k * D_sk + d, in_d, not EVEN_D)
    shift = read_vector(delta_bias, k * delta_bias_sk + d, in_d, not EVEN_D)
    chunks = tl.cdiv(length, CH)
    pid = tl.program_id(0).to(tl.int64)
    rows = pid * length * N + n
    cells = n[:, None] * BD + tl.arange(0, BD)[None, :]
    states += pid * tl.cdiv(chunks, SPAN) * (BN * BD)
    a = tl.load(states + cells)

    segment = tl.program_id(1)
    segments = tl.num_programs(1)
    dh = tl.zeros((BN, BD), tl.float32)
    if ends is not None:
        ends += pid * segments * (BN * BD) + cells
        spans += pid * segments * BD + tl.arange(0, BD)
        for after in range(segments - 1, segment, -1):
            dh = cross(dh, a, ends, spans, after, BN * BD, n, N, BD)
    first = segment * periods * SPAN
    chunks = tl.minimum(chunks, first + periods * SPAN)
    sum_A = tl.zeros((BN, BD), tl.float32)
    sum_D = tl.zeros((BD,), tl.float32)
    sum_bias = tl.zeros((BD,), tl.float32)
    ahead = read_chunk(
        chunks - 1,
        u,
        delta,
        z,
        B,
        C,
        grad_out,
        states,
        cells,
        order,
        length,
        is_reversed,
        in_d,
        n,
        u_sl,
        delta_sl,
        z_sl,
        grad_sl,
        B_sl,
        B_sn,
        C_sl,
        C_sn,
        N,
        BN * BD,
        CH,
        SPAN,
        BY_STEP,
        EVEN_D,
        WIDE,
        ALIGN_B,
        ALIGN_C,
    )
    for c in range(chunks - 1, first - 1, -1):
        kept = c // SPAN
        h, xs, raws, Bs, dys, gates, Cs = ahead
        ahead = read_chunk(
            tl.maximum(c - 1, 0),
            u,
            delta,
            z,
            B,
            C,
            grad_out,
            states,
            cells,
            order,
            length,
            is_reversed,
            in_d,
            n,
            u_sl,
            delta_sl,
            z_sl,
            grad_sl,
            B_sl,
            B_sn,
            C_sl,
            C_sn,
            N,
            BN * BD,
            CH,
            SPAN,
            BY_STEP,
            EVEN_D,
            WIDE,
            ALIGN_B,
            ALIGN_C,
        )
        h = tl.where(kept > 0, h, 0.0)
        for r in range(kept * SPAN, c):
            for i in tl.static_range(CH):
                t = r * CH + i
                p, q = token(t, length, is_reversed, order, BY_STEP, WIDE)
                x = read(u + p * u_sl, in_d, not EVEN_D).to(tl.float32)
                raw = read(delta + q * delta_sl, in_d, not EVEN_D)
                dt, _ = step_size(raw, shift, True, SOFTPLUS, True)
                B_t = read_row(B, q * B_sl, n, B_sn, N, ALIGN_B)
                h = advance(h, a, dt, x, B_t, n, N)
        hs = (h,)
        steps = ()
        slopes = ()
        for i in tl.static_range(CH):
            x = xs[i].to(tl.float32)
            dt, slope = step_size(
                raws[i], shift, c * CH + i < length, SOFTPLUS, EVEN_L
            )
            h = advance(h, a, dt, x, Bs[i], n, N)
            hs = hs + (h,)
            steps = steps + (dt,)
            slopes = slopes + (slope,)
        for i in tl.static_range(CH - 1, -1, -1):
            valid = c * CH + i < length
            p, q = token(c * CH + i, length, is_reversed, order, BY_STEP, WIDE)
            B_t = Bs[i].to(tl.float32)
            C_t = Cs[i].to(tl.float32)
            dy = dys[i].to(tl.float32)
            if not EVEN_L:
                dy = tl.where(valid, dy, 0.0)
            store = in_d & valid
            x = xs[i].to(tl.float32)
            dt = steps[i]
            if z is not None:
                gate = gates[i].to(tl.float32)
                slope = sigmoid(gate)
                if grad_z is not None:
                    y = tl.sum(hs[i + 1] * C_t[:, None], axis=0) + skip * x
                    y *= dy * slope * (1.0 + gate * (1.0 - slope))
                    tl.store(grad_z + tokens + p * D_all, y, mask=store)
                dy *= gate * slope
            if grad_C is not None:
                dC = tl.sum(hs[i + 1] * dy[None, :], axis=1)
                tl.store(grad_C + rows + q * N, dC, mask=in_n & valid)
            dh += C_t[:, None] * dy[None, :]
            if grad_B is not None:
                dB = tl.sum(dh * (dt * x)[None, :], axis=1)
                tl.store(grad_B + rows + q * N, dB, mask=in_n & valid)
            dBx = tl.sum(dh * B_t[:, None], axis=0)
            if grad_u is not None:
                du = dBx * dt + skip * dy
                tl.store(grad_u + tokens + p * D_all, du, mask=store)
            if grad_D is not None:
                sum_D += dy * x
            decay = tl.exp2(dt[None, :] * a)
            if N != BN:
                decay = tl.where(in_n[:, None], decay, 0.0)
            dh *= decay
            da = dh * hs[i]
            if not EVEN_L:
                da = tl.where(valid, da, 0.0)
            if grad_A is not None:
                sum_A += da * dt[None, :]
            if grad_delta is not None or grad_delta_bias is not None:
                ddelta = tl.sum(da * a, axis=0) * LN_2 + dBx * x
                ddelta *= slopes[i]
                if grad_delta_bias is not None:
                    sum_bias += ddelta
                if grad_delta is not None:
                    tl.store(
                        grad_delta + tokens + q * D_all, ddelta, mask=store
                    )
    if grad_A is not None:
        at = (pid * segments + segment) * (BN * BD)
        tl.store(grad_A + at + cells, sum_A)
    row = ((b * K + k) * segments + segment) * D_all + d
    if grad_D is not None:
        tl.store(grad_D + row, sum_D, mask=in_d)
    if grad_delta_bias is not None:
        tl.store(grad_delta_bias + row, sum_bias, mask=in_d)
