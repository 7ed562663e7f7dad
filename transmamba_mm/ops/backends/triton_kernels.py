# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Triton kernels of backend ``'triton'``.

One program, of one warp if possible, scans ``BD`` channels of one group of
one (sample, direction) pair, step after step.  Its state is a tile of
(``BN``, ``BD``) values in registers.  What a step reads does not depend on
the state, so the reads of ``CH`` steps come first: the compiler cannot move
them above writes, and waiting for memory at each step would cost more than
the step.

Triton derives from the widest access to a tile how the tile is spread over
the threads:

* forward: one channel per thread.  Sums over the states then stay within a
  thread, and no thread repeats another's softplus.  For this the compiler
  must not see that four floats of ``A`` or ``states`` could be accessed at
  once, which is why ``A_sn`` and ``tile_size`` are not specialized;
* backward: four channels and N / 4 states per thread, because it also sums
  over the channels.  This takes 48 shuffles per step and 32 channels, where
  one channel per thread would take 160.  All tiles that it reads or writes
  are stored alike, lest the compiler choose another way.

Beyond the last step, the last step's inputs are read again with a step size
and an output gradient of 0, which is cheaper than masks.

Only imported where triton is installed.
"""
# ruff: noqa: RUF005  (Triton knows no starred tuples)

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Arguments of which the compiler must not know the divisibility.
OPAQUE = ('reverses', 'tile_size', 'A_sn')


@triton.jit
def _softplus(x):
    """Return log(1 + exp(x)) and its derivative.

    The logarithm is the series of 2 atanh(e / (2 + e)), which needs no
    library and keeps its relative accuracy (1e-7) for small results.  Above
    20 the results are x and 1 in float32.
    """
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    s = e / (2.0 + e)
    s2 = s * s
    series = s2 * (1.0 / 13) + 1.0 / 11
    series = series * s2 + 1.0 / 9
    series = series * s2 + 1.0 / 7
    series = series * s2 + 1.0 / 5
    series = series * s2 + 1.0 / 3
    series = series * s2 + 1.0
    slope = tl.where(x > 0, 1.0, e) / (1.0 + e)
    return tl.where(x > 0, x, 0.0) + 2.0 * s * series, slope


@triton.jit
def _sigmoid(x):
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def _step_size(
    raw, shift, valid, SOFTPLUS: tl.constexpr, EVEN_L: tl.constexpr
):
    """Return the step size, 0 beyond the end, and its derivative."""
    x = raw.to(tl.float32) + shift
    slope = tl.zeros_like(x) + 1.0
    if SOFTPLUS:
        x, slope = _softplus(x)
    if not EVEN_L:
        x = tl.where(valid, x, 0.0)
        slope = tl.where(valid, slope, 0.0)
    return x, slope


@triton.jit
def _read(x, mask, MASKED: tl.constexpr):
    return tl.load(x, mask=mask, other=0.0) if MASKED else tl.load(x)


@triton.jit
def _read_row(x, offset, n, stride, N: tl.constexpr, ALIGN: tl.constexpr):
    """Read the N weights at an offset; ALIGN bytes divide its address."""
    row = tl.multiple_of(x + offset, ALIGN)
    return _read(row + n * stride, n < N, n.shape[0] != N)


@triton.jit
def _read_vector(x, offset, mask, MASKED: tl.constexpr):
    """Read a weight per channel, zeros if there are none."""
    y = tl.zeros(mask.shape, tl.float32)
    if x is not None:
        y += _read(x + offset, mask, MASKED).to(tl.float32)
    return y


@triton.jit
def _advance(h, a, dt, x, B_t, n, N: tl.constexpr):
    """Return the state after one more step."""
    B_t = B_t.to(tl.float32)
    h = tl.exp2(dt[None, :] * a) * h + B_t[:, None] * (dt * x)[None, :]
    if n.shape[0] != N:  # an infinite dt must not reach what is not there
        h = tl.where((n < N)[:, None], h, 0.0)
    return h


@triton.jit
def _token(
    t, length, is_reversed, order, BY_STEP: tl.constexpr, WIDE: tl.constexpr
):
    """Return the token of step t, and where delta, B and C have it.

    Beyond the end it is the last step's.  They are int64 if WIDE, which is
    set if an offset could overflow.
    """
    t = tl.minimum(t, length - 1)
    p = tl.where(is_reversed, length - 1 - t, t)
    if order is not None:
        p = tl.load(order + p)
    q = p
    if BY_STEP:
        q = t
    if WIDE:
        p = p.to(tl.int64)
        q = q.to(tl.int64)
    return p, q


@triton.jit
def _place(blocks, K, G, channels, reverses, BD: tl.constexpr):
    """Tell which part of the problem this program has.

    Returns sample, direction, whether it is reversed, group, channels and
    which of them exist.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    row = pid // blocks
    k = row % K
    g = block // (blocks // G)
    lane = block % (blocks // G) * BD + tl.arange(0, BD)
    return (
        (row // K).to(tl.int64),
        k.to(tl.int64),
        (reverses >> k) & 1 == 1,
        g.to(tl.int64),
        (g * channels + lane).to(tl.int64),
        lane < channels,
    )


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
    length,
    channels,
    blocks,
    K,
    G,
    reverses,
    tile_size,
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
    SOFTPLUS: tl.constexpr,
    BY_STEP: tl.constexpr,
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
    """
    b, k, is_reversed, g, d, in_d = _place(
        blocks, K, G, channels, reverses, BD
    )
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
    out += (b * K + k) * length * D_all + d
    order = orders
    if order is not None:
        order += k * length
    A += k * A_sk + n[:, None] * A_sn + d[None, :]
    a = tl.load(A, mask=tile, other=0.0) * LOG2_E
    skip = _read_vector(D, k * D_sk + d, in_d, not EVEN_D)
    shift = _read_vector(delta_bias, k * delta_bias_sk + d, in_d, not EVEN_D)
    chunks = tl.cdiv(length, CH)
    if BN == 1:  # nothing to sum, so that wide accesses are welcome
        tile_size = BD
    if states is not None:
        states += tl.program_id(0).to(tl.int64) * chunks * tile_size
        states += n[:, None] * BD + tl.arange(0, BD)[None, :]

    h = tl.zeros((BN, BD), tl.float32)
    for c in range(chunks):
        if states is not None:
            tl.store(states, tl.where(c > 0, h, a))
            states += tile_size
        xs = ()
        steps = ()
        gates = ()
        places = ()
        ys = ()
        for i in tl.static_range(CH):
            t = c * CH + i
            p, q = _token(t, length, is_reversed, order, BY_STEP, WIDE)
            xs = xs + (_read(u + p * u_sl, in_d, not EVEN_D),)
            steps = steps + (_read(delta + q * delta_sl, in_d, not EVEN_D),)
            if z is not None:
                gates = gates + (_read(z + p * z_sl, in_d, not EVEN_D),)
            places = places + ((p, q),)
        for i in tl.static_range(CH):
            p, q = places[i]
            B_t = _read_row(B, q * B_sl, n, B_sn, N, ALIGN_B)
            C_t = _read_row(C, q * C_sl, n, C_sn, N, ALIGN_C).to(tl.float32)
            x = xs[i].to(tl.float32)
            dt, _ = _step_size(
                steps[i], shift, c * CH + i < length, SOFTPLUS, EVEN_L
            )
            h = _advance(h, a, dt, x, B_t, n, N)
            y = tl.sum(h * C_t[:, None], axis=0)
            if D is not None:
                y += skip * x
            if z is not None:
                gate = gates[i].to(tl.float32)
                y *= gate * _sigmoid(gate)
            ys = ys + (y,)
        for i in tl.static_range(CH):
            p, q = places[i]
            valid = c * CH + i < length
            tl.store(out + p * D_all, ys[i], mask=in_d & valid)
    last += (b * K + k) * D_all * N + d[None, :] * N + n[:, None]
    tl.store(last, h, mask=tile)


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
    blocks, BN, BD); for ``B`` and ``C``, (B, K, blocks, L, N); for ``D`` and
    ``delta_bias``, (B, K, D).
    """
    b, k, is_reversed, g, d, in_d = _place(
        blocks, K, G, channels, reverses, BD
    )
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
    skip = _read_vector(D, k * D_sk + d, in_d, not EVEN_D)
    shift = _read_vector(delta_bias, k * delta_bias_sk + d, in_d, not EVEN_D)
    chunks = tl.cdiv(length, CH)
    pid = tl.program_id(0).to(tl.int64)
    rows = pid * length * N + n
    cells = n[:, None] * BD + tl.arange(0, BD)[None, :]
    states += pid * tl.cdiv(chunks, SPAN) * (BN * BD)
    a = tl.load(states + cells)

    dh = tl.zeros((BN, BD), tl.float32)
    sum_A = tl.zeros((BN, BD), tl.float32)
    sum_D = tl.zeros((BD,), tl.float32)
    sum_bias = tl.zeros((BD,), tl.float32)
    for j in range(chunks):
        c = chunks - 1 - j
        kept = c // SPAN
        h = tl.load(states + kept.to(tl.int64) * (BN * BD) + cells)
        h = tl.where(kept > 0, h, 0.0)
        for r in range(kept * SPAN, c):
            for i in tl.static_range(CH):
                t = r * CH + i
                p, q = _token(t, length, is_reversed, order, BY_STEP, WIDE)
                x = _read(u + p * u_sl, in_d, not EVEN_D).to(tl.float32)
                raw = _read(delta + q * delta_sl, in_d, not EVEN_D)
                dt, _ = _step_size(raw, shift, True, SOFTPLUS, True)
                B_t = _read_row(B, q * B_sl, n, B_sn, N, ALIGN_B)
                h = _advance(h, a, dt, x, B_t, n, N)
        hs = (h,)
        xs = ()
        dys = ()
        gates = ()
        places = ()
        Cs = ()
        steps = ()
        slopes = ()
        for i in tl.static_range(CH):
            t = c * CH + i
            p, q = _token(t, length, is_reversed, order, BY_STEP, WIDE)
            dys = dys + (_read(grad_out + p * grad_sl, in_d, not EVEN_D),)
            if z is not None:
                gates = gates + (_read(z + p * z_sl, in_d, not EVEN_D),)
            Cs = Cs + (_read_row(C, q * C_sl, n, C_sn, N, ALIGN_C),)
            places = places + ((p, q),)
            x = _read(u + p * u_sl, in_d, not EVEN_D).to(tl.float32)
            raw = _read(delta + q * delta_sl, in_d, not EVEN_D)
            dt, slope = _step_size(raw, shift, t < length, SOFTPLUS, EVEN_L)
            B_t = _read_row(B, q * B_sl, n, B_sn, N, ALIGN_B)
            h = _advance(h, a, dt, x, B_t, n, N)
            hs = hs + (h,)
            xs = xs + (x,)
            steps = steps + (dt,)
            slopes = slopes + (slope,)
        for i in tl.static_range(CH - 1, -1, -1):
            valid = c * CH + i < length
            p, q = places[i]
            B_t = _read_row(B, q * B_sl, n, B_sn, N, ALIGN_B).to(tl.float32)
            C_t = Cs[i].to(tl.float32)
            dy = dys[i].to(tl.float32)
            if not EVEN_L:
                dy = tl.where(valid, dy, 0.0)
            store = in_d & valid
            x = xs[i]
            dt = steps[i]
            if z is not None:
                gate = gates[i].to(tl.float32)
                slope = _sigmoid(gate)
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
        tl.store(grad_A + pid * (BN * BD) + cells, sum_A)
    row = (b * K + k) * D_all + d
    if grad_D is not None:
        tl.store(grad_D + row, sum_D, mask=in_d)
    if grad_delta_bias is not None:
        tl.store(grad_delta_bias + row, sum_bias, mask=in_d)
