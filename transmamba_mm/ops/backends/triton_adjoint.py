# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What segments hand down in the backward pass of backend ``'triton'``.

See :mod:`.triton_pieces`.
"""
# ruff: noqa: RUF005  (Triton knows no starred tuples)

import triton
import triton.language as tl

from .triton_pieces import (
    OPAQUE,
    place,
    read,
    read_row,
    read_vector,
    sigmoid,
    step_size,
    token,
)


@triton.jit
def read_adjoint(
    c,
    delta,
    z,
    C,
    grad_out,
    order,
    length,
    is_reversed,
    in_d,
    n,
    delta_sl,
    z_sl,
    grad_sl,
    C_sl,
    C_sn,
    N: tl.constexpr,
    CH: tl.constexpr,
    BY_STEP: tl.constexpr,
    EVEN_D: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN_C: tl.constexpr,
):
    """Read what :func:`scan_adjoint` needs for the steps of chunk c."""
    steps = ()
    dys = ()
    gates = ()
    Cs = ()
    for i in tl.static_range(CH):
        p, q = token(c * CH + i, length, is_reversed, order, BY_STEP, WIDE)
        steps = steps + (read(delta + q * delta_sl, in_d, not EVEN_D),)
        dys = dys + (read(grad_out + p * grad_sl, in_d, not EVEN_D),)
        Cs = Cs + (read_row(C, q * C_sl, n, C_sn, N, ALIGN_C),)
        if z is not None:
            gates = gates + (read(z + p * z_sl, in_d, not EVEN_D),)
    return steps, dys, gates, Cs


@triton.jit(do_not_specialize=OPAQUE)
def scan_adjoint(
    delta,
    C,
    z,
    delta_bias,
    orders,
    states,
    grad_out,
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
    C_sb,
    C_sk,
    C_sg,
    C_sl,
    C_sn,
    delta_bias_sk,
    N: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    CH: tl.constexpr,
    KEEP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BY_STEP: tl.constexpr,
    EVEN_L: tl.constexpr,
    EVEN_D: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN_C: tl.constexpr,
):
    """Compute what each segment but the first hands down to the one before.

    That is the gradient of the segment's first state if nothing came from
    the segments after it, ``ends`` (B, K, blocks, segments, BN, BD), and the
    sum of its step sizes, ``spans`` (B, K, blocks, segments, BD).
    """
    b, k, is_reversed, g, d, in_d = place(blocks, K, G, channels, reverses, BD)
    n = tl.arange(0, BN)
    if WIDE:
        n = n.to(tl.int64)
    delta += b * delta_sb + k * delta_sk + d * delta_sd
    grad_out += b * grad_sb + k * grad_sk + d * grad_sd
    if z is not None:
        z += b * z_sb + k * z_sk + d * z_sd
    C += b * C_sb + k * C_sk + g * C_sg
    order = orders
    if order is not None:
        order += k * length
    shift = read_vector(delta_bias, k * delta_bias_sk + d, in_d, not EVEN_D)
    chunks = tl.cdiv(length, CH)
    if BN == 1:  # see scan_forward
        tile_size = BD
    segment = tl.program_id(1) + 1
    segments = tl.cdiv(chunks, periods * KEEP)
    pid = tl.program_id(0).to(tl.int64)
    cells = n[:, None] * BD + tl.arange(0, BD)[None, :]
    a = tl.load(states + pid * tl.cdiv(chunks, KEEP) * tile_size + cells)

    dh = tl.zeros((BN, BD), tl.float32)
    span = tl.zeros((BD,), tl.float32)
    first = segment * periods * KEEP
    chunks = tl.minimum(first + periods * KEEP, chunks)
    ahead = read_adjoint(
        chunks - 1,
        delta,
        z,
        C,
        grad_out,
        order,
        length,
        is_reversed,
        in_d,
        n,
        delta_sl,
        z_sl,
        grad_sl,
        C_sl,
        C_sn,
        N,
        CH,
        BY_STEP,
        EVEN_D,
        WIDE,
        ALIGN_C,
    )
    for c in range(chunks - 1, first - 1, -1):
        steps, dys, gates, Cs = ahead
        ahead = read_adjoint(
            tl.maximum(c - 1, 0),
            delta,
            z,
            C,
            grad_out,
            order,
            length,
            is_reversed,
            in_d,
            n,
            delta_sl,
            z_sl,
            grad_sl,
            C_sl,
            C_sn,
            N,
            CH,
            BY_STEP,
            EVEN_D,
            WIDE,
            ALIGN_C,
        )
        for i in tl.static_range(CH - 1, -1, -1):
            valid = c * CH + i < length
            dt, _ = step_size(steps[i], shift, valid, SOFTPLUS, EVEN_L)
            dy = dys[i].to(tl.float32)
            if not EVEN_L:
                dy = tl.where(valid, dy, 0.0)
            if z is not None:
                gate = gates[i].to(tl.float32)
                dy *= gate * sigmoid(gate)
            dh += Cs[i].to(tl.float32)[:, None] * dy[None, :]
            dh *= tl.exp2(dt[None, :] * a)
            if n.shape[0] != N:  # see advance
                dh = tl.where((n < N)[:, None], dh, 0.0)
            span += dt
    at = pid * segments + segment
    tl.store(ends + at * tile_size + cells, dh)
    tl.store(spans + at * BD + tl.arange(0, BD), span)
