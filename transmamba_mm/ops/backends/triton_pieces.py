# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Kernels of backend ``'triton'``.

One program, of one warp if possible, scans ``BD`` channels of one group of
one (sample, direction) pair, step after step.  Its state is a tile of
(``BN``, ``BD``) values in registers.  What a step reads does not depend on
the state, so it is read one pass of the loop before it is needed and carried
over.  Nothing else helps: reads that are merely written earlier are moved
back to where their results are used, and each step waits for memory (on an
H200 that doubled the time).

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

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Arguments of which the compiler must not know the divisibility.
OPAQUE = ('reverses', 'tile_size', 'A_sn')


@triton.jit
def softplus(x):
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
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def step_size(raw, shift, valid, SOFTPLUS: tl.constexpr, EVEN_L: tl.constexpr):
    """Return the step size, 0 beyond the end, and its derivative."""
    x = raw.to(tl.float32) + shift
    slope = tl.zeros_like(x) + 1.0
    if SOFTPLUS:
        x, slope = softplus(x)
    if not EVEN_L:
        x = tl.where(valid, x, 0.0)
        slope = tl.where(valid, slope, 0.0)
    return x, slope


@triton.jit
def read(x, mask, MASKED: tl.constexpr):
    """Read; 0 where the mask is False, if anything is masked at all."""
    return tl.load(x, mask=mask, other=0.0) if MASKED else tl.load(x)


@triton.jit
def read_row(x, offset, n, stride, N: tl.constexpr, ALIGN: tl.constexpr):
    """Read the N weights at an offset; ALIGN bytes divide its address."""
    row = tl.multiple_of(x + offset, ALIGN)
    return read(row + n * stride, n < N, n.shape[0] != N)


@triton.jit
def read_vector(x, offset, mask, MASKED: tl.constexpr):
    """Read a weight per channel, zeros if there are none."""
    y = tl.zeros(mask.shape, tl.float32)
    if x is not None:
        y += read(x + offset, mask, MASKED).to(tl.float32)
    return y


@triton.jit
def advance(h, a, dt, x, B_t, n, N: tl.constexpr):
    """Return the state after one more step."""
    B_t = B_t.to(tl.float32)
    h = tl.exp2(dt[None, :] * a) * h + B_t[:, None] * (dt * x)[None, :]
    if n.shape[0] != N:  # an infinite dt must not reach what is not there
        h = tl.where((n < N)[:, None], h, 0.0)
    return h


@triton.jit
def cross(
    h, a, ends, spans, i, tile_size, n, N: tl.constexpr, BD: tl.constexpr
):
    """Return the state after segment i, whose end from 0 is known."""
    span = tl.load(spans + i * BD)
    h = tl.exp2(span[None, :] * a) * h + tl.load(ends + i * tile_size)
    if n.shape[0] != N:  # see advance
        h = tl.where((n < N)[:, None], h, 0.0)
    return h


@triton.jit
def token(
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
def place(blocks, K, G, channels, reverses, BD: tl.constexpr):
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
