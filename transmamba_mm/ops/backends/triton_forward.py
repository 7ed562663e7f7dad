# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Forward kernel of backend ``'triton'``; see :mod:`.triton_pieces`."""
# ruff: noqa: RUF005  (Triton knows no starred tuples)

import triton
import triton.language as tl

from .triton_pieces import (
    LOG2_E,
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
def read_steps(
    c,
    u,
    delta,
    z,
    B,
    C,
    order,
    length,
    is_reversed,
    in_d,
    n,
    u_sl,
    delta_sl,
    z_sl,
    B_sl,
    B_sn,
    C_sl,
    C_sn,
    N: tl.constexpr,
    CH: tl.constexpr,
    BY_STEP: tl.constexpr,
    ENDS: tl.constexpr,
    EVEN_D: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN_B: tl.constexpr,
    ALIGN_C: tl.constexpr,
):
    """Read what the CH steps of chunk c need."""
    xs = ()
    steps = ()
    gates = ()
    Bs = ()
    Cs = ()
    for i in tl.static_range(CH):
        p, q = token(c * CH + i, length, is_reversed, order, BY_STEP, WIDE)
        xs = xs + (read(u + p * u_sl, in_d, not EVEN_D),)
        steps = steps + (read(delta + q * delta_sl, in_d, not EVEN_D),)
        Bs = Bs + (read_row(B, q * B_sl, n, B_sn, N, ALIGN_B),)
        if not ENDS:
            Cs = Cs + (read_row(C, q * C_sl, n, C_sn, N, ALIGN_C),)
            if z is not None:
                gates = gates + (read(z + p * z_sl, in_d, not EVEN_D),)
    return xs, steps, gates, Bs, Cs


@triton.jit(do_not_specialize=OPAQUE)
def scan_forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    orders,
    out,
    last,
    states,
    ends,
    spans,
    length,
    channels,
    blocks,
    K,
    G,
    reverses,
    tile_size,
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
    A_sk,
    A_sn,
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
    KEEP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BY_STEP: tl.constexpr,
    ENDS: tl.constexpr,
    EVEN_L: tl.constexpr,
    EVEN_D: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN_B: tl.constexpr,
    ALIGN_C: tl.constexpr,
):
    """Scan; keep the state before every CH-th step if states is not None.

    ``A`` is (K, N, D) in float32, ``out`` (B, K, L, D), ``last`` (B, K, D, N)
    and ``states`` (B, K, blocks, chunks, BN, BD).  The first state is known
    to be 0; its place takes the rates ``A`` * log2(e), as a tile.

    A program scans one segment of ``periods`` chunks.  With ``ENDS`` it only
    writes the state to which the segment leads from 0, ``ends`` (B, K,
    blocks, segments, BN, BD), and the sum of its step sizes, ``spans`` (B, K,
    blocks, segments, BD); without, it reads both of the segments before its
    own, which give its first state.
    """
    b, k, is_reversed, g, d, in_d = place(blocks, K, G, channels, reverses, BD)
    n = tl.arange(0, BN)
    in_n = n < N
    if WIDE:
        n = n.to(tl.int64)
    tile = in_n[:, None] & in_d[None, :]
    u += b * u_sb + k * u_sk + d * u_sd
    delta += b * delta_sb + k * delta_sk + d * delta_sd
    if z is not None:
        z += b * z_sb + k * z_sk + d * z_sd
    B += b * B_sb + k * B_sk + g * B_sg
    C += b * C_sb + k * C_sk + g * C_sg
    D_all = channels * G
    if not ENDS:
        out += (b * K + k) * length * D_all + d
    order = orders
    if order is not None:
        order += k * length
    A += k * A_sk + n[:, None] * A_sn + d[None, :]
    a = tl.load(A, mask=tile, other=0.0) * LOG2_E
    skip = read_vector(D, k * D_sk + d, in_d, not EVEN_D)
    shift = read_vector(delta_bias, k * delta_bias_sk + d, in_d, not EVEN_D)
    chunks = tl.cdiv(length, CH)
    if BN == 1:  # nothing to sum, so that wide accesses are welcome
        tile_size = BD
    segment = tl.program_id(1)
    segments = tl.cdiv(chunks, periods * KEEP)
    pid = tl.program_id(0).to(tl.int64)
    cells = n[:, None] * BD + tl.arange(0, BD)[None, :]
    if states is not None:
        states += (
            pid * tl.cdiv(chunks, KEEP) + segment * periods
        ) * tile_size + cells

    h = tl.zeros((BN, BD), tl.float32)
    span = tl.zeros((BD,), tl.float32)
    if ends is not None:
        ends += pid * segments * tile_size + cells
        spans += pid * segments * BD + tl.arange(0, BD)
        if not ENDS:
            for before in range(segment):
                h = cross(h, a, ends, spans, before, tile_size, n, N, BD)
    first = segment * periods * KEEP
    ahead = read_steps(
        first,
        u,
        delta,
        z,
        B,
        C,
        order,
        length,
        is_reversed,
        in_d,
        n,
        u_sl,
        delta_sl,
        z_sl,
        B_sl,
        B_sn,
        C_sl,
        C_sn,
        N,
        CH,
        BY_STEP,
        ENDS,
        EVEN_D,
        WIDE,
        ALIGN_B,
        ALIGN_C,
    )
    for c in range(first, tl.minimum(first + periods * KEEP, chunks)):
        if states is not None and c % KEEP == 0:
            tl.store(states, tl.where(c > 0, h, a))
            states += tile_size
        xs, steps, gates, Bs, Cs = ahead
        ahead = read_steps(
            c + 1,
            u,
            delta,
            z,
            B,
            C,
            order,
            length,
            is_reversed,
            in_d,
            n,
            u_sl,
            delta_sl,
            z_sl,
            B_sl,
            B_sn,
            C_sl,
            C_sn,
            N,
            CH,
            BY_STEP,
            ENDS,
            EVEN_D,
            WIDE,
            ALIGN_B,
            ALIGN_C,
        )
        for i in tl.static_range(CH):
            t = c * CH + i
            x = xs[i].to(tl.float32)
            dt, _ = step_size(steps[i], shift, t < length, SOFTPLUS, EVEN_L)
            h = advance(h, a, dt, x, Bs[i], n, N)
            if ENDS:
                span += dt
            else:
                y = tl.sum(h * Cs[i].to(tl.float32)[:, None], axis=0)
                if D is not None:
                    y += skip * x
                if z is not None:
                    gate = gates[i].to(tl.float32)
                    y *= gate * sigmoid(gate)
                p, _ = token(t, length, is_reversed, order, BY_STEP, WIDE)
                tl.store(out + p * D_all, y, mask=in_d & (t < length))
    if ENDS:
        tl.store(ends + segment * tile_size, h)
        tl.store(spans + segment * BD, span)
    else:
        last += (b * K + k) * D_all * N + d[None, :] * N + n[:, None]
        tl.store(last, h, mask=tile & (segment == segments - 1))
