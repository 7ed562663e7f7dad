# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Triton kernels of the causal convolution with SiLU, in K directions.

Both kernels walk along the tokens once, for all directions.  At time T of the
walk token T enters a window of ``width`` tokens.  A forward direction
convolves the window into output T.  A reversed one convolves it, with its
weights in opposite order, into output T - (width - 1), the oldest token of
the window.  So, with the weights put in order once, directions differ only in
which output a time stands for, and form one axis of the tiles.

The walk backwards needs no more than that: at time T the gradient before SiLU
of direction k enters a second window, of which ``width`` values are all that
contributes to the gradient of token T - (width - 1), whatever the direction.

A program of one warp has ``BD`` channels and a part of the walk, each thread
two channels of every token: what a window holds stays in registers.
Reads of ``CH`` times come first, since the compiler cannot move them above
writes.  Nothing is added up atomically, so that results do not change from run
to run.

Only imported where triton is installed.
"""
# ruff: noqa: RUF005  (Triton knows no starred tuples)

from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import Launch, power_of_2

LOG2_E = tl.constexpr(1.4426950408889634)

BD = 64  # channels of a program
# Programs below which the walk is cut up further.  A multiprocessor holds
# about 16 of them, and there are 108 to 132.
ENOUGH = 2048
LONGEST = 32  # chunks of a program

# Arguments of which 1 or a multiple of 16 shall not be a kernel of its own.
PLAIN = ('length', 'reverses', 'chunks')


@triton.jit
def _place(K, reverses, KB: tl.constexpr, BD: tl.constexpr):
    """Return sample, channels, directions, which walk back, what exists.

    All but the sample are tiles of two axes, (1, BD) or (KB, 1): Triton would
    spread those of one axis over the threads in another way.
    """
    # 64 bits, as offsets may not fit in 32.
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(2).to(tl.int64) * BD + tl.arange(0, BD)
    # Nothing wider is to be accessed at once: a thread then has all directions
    # of its channels, and threads have nothing to exchange.
    d = tl.max_contiguous(d, BD // 32)[None, :]
    k = tl.arange(0, KB)[:, None]
    back = (reverses >> k) & 1
    return b, d, k.to(tl.int64), back, k < K


@triton.jit
def _taps(weight, bias, channel, back, mask, WIDTH: tl.constexpr):
    """Read the weights in the order of the window, and the bias."""
    taps = ()
    for j in tl.static_range(WIDTH):
        m = j + back * (WIDTH - 1 - 2 * j)
        at = weight + channel * WIDTH + m
        taps = taps + (tl.load(at, mask=mask, other=0.0).to(tl.float32),)
    shift = tl.zeros(mask.shape, tl.float32)
    if bias is not None:
        shift += tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32)
    return taps, shift


@triton.jit
def _window(x, t, x_sl, in_d, length, COUNT: tl.constexpr):
    """Read COUNT tokens from token t on, zeros where there are none."""
    rows = ()
    for i in tl.static_range(COUNT):
        s = t + i
        mask = in_d & (s >= 0) & (s < length)
        rows = rows + (tl.load(x + s * x_sl, mask=mask, other=0.0),)
    return rows


@triton.jit
def _convolve(rows, taps, shift, i: tl.constexpr, WIDTH: tl.constexpr):
    """Return the convolution at the i-th time and its sigmoid."""
    y = shift
    for j in tl.static_range(WIDTH):
        y += taps[j] * rows[i + j].to(tl.float32)
    return y, 1.0 / (1.0 + tl.exp2(y * -LOG2_E))


@triton.jit(do_not_specialize=PLAIN)
def conv_forward(
    x,
    weight,
    bias,
    out,
    x_sb,
    x_sl,
    x_sd,
    length,
    channels,
    reverses,
    chunks,
    K: tl.constexpr,
    KB: tl.constexpr,
    WIDTH: tl.constexpr,
    BD: tl.constexpr,
    CH: tl.constexpr,
):
    """Convolve; ``out`` has storage (K, B, L, D).

    ``weight`` is (K, D, width), ``bias`` (K, D) or None.
    """
    b, d, k, back, in_k = _place(K, reverses, KB, BD)
    in_d = d < channels
    tile = in_k & in_d
    taps, shift = _taps(weight, bias, k * channels + d, back, tile, WIDTH)
    lag = back * (WIDTH - 1)
    x += b * x_sb + d * x_sd
    first = (k * tl.num_programs(0) + b) * length - lag
    out += first * channels + d
    start = tl.program_id(1).to(tl.int64) * (chunks * CH)
    for c in range(chunks):
        t = start + c * CH
        rows = _window(x, t - (WIDTH - 1), x_sl, in_d, length, CH + WIDTH - 1)
        for i in tl.static_range(CH):
            y, gate = _convolve(rows, taps, shift, i, WIDTH)
            s = t + i - lag
            mask = tile & (s >= 0) & (s < length)
            tl.store(out + (t + i) * channels, y * gate, mask=mask)


@triton.jit(do_not_specialize=PLAIN)
def conv_backward(
    grad_out,
    x,
    weight,
    bias,
    grad_x,
    sums,
    grad_sb,
    grad_sk,
    grad_sl,
    grad_sd,
    x_sb,
    x_sl,
    x_sd,
    length,
    channels,
    reverses,
    chunks,
    K: tl.constexpr,
    KB: tl.constexpr,
    WIDTH: tl.constexpr,
    BD: tl.constexpr,
    CH: tl.constexpr,
):
    """Compute the gradients.

    ``grad_x`` is (B, L, D), contiguous.  Each program writes its share of the
    weights' gradients, (K, D, width), and the biases', (K, D), one after the
    other into its row of ``sums``, (programs, K * D * (width + 1)).
    """
    b, d, k, back, in_k = _place(K, reverses, KB, BD)
    in_d = d < channels
    tile = in_k & in_d
    channel = k * channels + d
    taps, shift = _taps(weight, bias, channel, back, tile, WIDTH)
    lag = back * (WIDTH - 1)
    x += b * x_sb + d * x_sd
    grad_x += (b * length - (WIDTH - 1)) * channels + d
    grad_out += b * grad_sb + (k * grad_sk - lag * grad_sl) + d * grad_sd
    # The first width - 1 times only fill the window of gradients.
    part = tl.program_id(1)
    start = part.to(tl.int64) * (chunks * CH - (WIDTH - 1))
    own = start + (WIDTH - 1)
    counted = own
    if part == 0:  # no other program has these times
        counted = start
    zero = tl.zeros((KB, BD), tl.float32)
    past1, past2, past3 = zero, zero, zero
    sum0, sum1, sum2, sum3, sum_bias = zero, zero, zero, zero, zero
    for c in range(chunks):
        t = start + c * CH
        rows = _window(x, t - (WIDTH - 1), x_sl, in_d, length, CH + WIDTH - 1)
        grads = ()
        for i in tl.static_range(CH):
            s = t + i - lag
            mask = tile & (s >= 0) & (s < length)
            at = grad_out + (t + i) * grad_sl
            grads = grads + (tl.load(at, mask=mask, other=0.0),)
        for i in tl.static_range(CH):
            y, gate = _convolve(rows, taps, shift, i, WIDTH)
            grad = grads[i].to(tl.float32) * gate * (1.0 + y * (1.0 - gate))
            total = taps[0] * grad + taps[1] * past1
            if WIDTH > 2:
                total += taps[2] * past2
            if WIDTH > 3:
                total += taps[3] * past3
            past3 = past2
            past2 = past1
            past1 = grad
            mask = in_d & (t + i >= own) & (t + i - (WIDTH - 1) < length)
            tl.store(
                grad_x + (t + i) * channels,
                tl.sum(total, axis=0, keep_dims=True),
                mask=mask,
            )
            grad = tl.where(t + i >= counted, grad, 0.0)
            sum_bias += grad
            sum0 += grad * rows[i].to(tl.float32)
            sum1 += grad * rows[i + 1].to(tl.float32)
            if WIDTH > 2:
                sum2 += grad * rows[i + 2].to(tl.float32)
            if WIDTH > 3:
                sum3 += grad * rows[i + 3].to(tl.float32)
    size = channels * K
    sums += (b * tl.num_programs(1) + part) * (size * (WIDTH + 1))
    tl.store(sums + size * WIDTH + channel, sum_bias, mask=tile)
    sums += channel * WIDTH
    tl.store(sums + back * (WIDTH - 1), sum0, mask=tile)
    tl.store(sums + 1 + back * (WIDTH - 3), sum1, mask=tile)
    if WIDTH > 2:
        tl.store(sums + 2 + back * (WIDTH - 5), sum2, mask=tile)
    if WIDTH > 3:
        tl.store(sums + 3 + back * (WIDTH - 7), sum3, mask=tile)


class Tiling(NamedTuple):
    """How the work is cut up.

    Attributes:
        CH: times of which the inputs are read at once.
        chunks: chunks of CH times of a program.
        parts: programs along the walk.
        blocks: programs along the channels.
    """

    CH: int
    chunks: int
    parts: int
    blocks: int


def tiling(
    batch: int, length: int, channels: int, K: int, overlap: int
) -> Tiling:
    """Choose the sizes.

    Args:
        batch: number of samples.
        length: of the walk.
        channels: of a token.
        K: number of directions.
        overlap: times that a program repeats of the one before.

    Returns:
        Tiling: the sizes.
    """
    CH = 8 if K <= 2 else 4  # so that all fits into the registers
    blocks = -(-channels // BD)
    chunks = LONGEST
    parts = -(-length // (chunks * CH - overlap))
    # Less than two chunks would repeat too much.
    while chunks > 2 and batch * parts * blocks < ENOUGH:
        chunks //= 2
        parts = -(-length // (chunks * CH - overlap))
    # As many programs, of equal length.
    chunks = -(-(-(-length // parts) + overlap) // CH)
    parts = -(-length // (chunks * CH - overlap))
    return Tiling(CH, chunks, parts, blocks)


def plan_forward(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    reverse: list[int],
    out: Tensor,
) -> Launch:
    """Describe the forward launch.

    Args:
        x: tokens, (B, L, D).
        weight: (K, D, width), or (D, width) if K is 1.
        bias: (K, D) or (D,), or None.
        reverse: K flags.
        out: to be written; its storage is (K, B, L, D).

    Returns:
        Launch: the launch.
    """
    lag = weight.shape[-1] - 1 if any(reverse) else 0
    return _plan(conv_forward, x, weight, bias, reverse, lag, 0, out=out)


def plan_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    reverse: list[int],
    grad_x: Tensor,
) -> Launch:
    """Describe the backward launch, and allocate the sums of programs.

    Args:
        grad_out: (B, K, L, D), or (B, L, D) if ``weight`` is (D, width).
        x: as for :func:`plan_forward`, and so are the next three.
        weight: see there.
        bias: see there.
        reverse: see there.
        grad_x: to be written, (B, L, D), contiguous.

    Returns:
        Launch: the launch.
    """
    if grad_out.dim() == 3:
        grad_out = grad_out.unsqueeze(1)
    names = ('grad_sb', 'grad_sk', 'grad_sl', 'grad_sd')
    launch = _plan(
        conv_backward,
        x,
        weight,
        bias,
        reverse,
        0,
        weight.shape[-1] - 1,
        grad_out=grad_out,
        grad_x=grad_x,
        sums=None,
        **dict(zip(names, grad_out.stride())),
    )
    batch, parts, _ = launch.grid
    size = weight.numel() // weight.shape[-1] * (weight.shape[-1] + 1)
    launch.arguments['sums'] = x.new_empty(
        batch * parts, size, dtype=torch.float32
    )
    return launch


def _plan(kernel, x, weight, bias, reverse, lag, overlap, **others) -> Launch:
    batch, length, channels = x.shape
    K = len(reverse)
    t = tiling(batch, length + lag, channels, K, overlap)
    x_sb, x_sl, x_sd = x.stride()
    arguments = dict(
        others,
        x=x,
        weight=weight.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        x_sb=x_sb,
        x_sl=x_sl,
        x_sd=x_sd,
        length=length,
        channels=channels,
        reverses=sum(1 << k for k, back in enumerate(reverse) if back),
        chunks=t.chunks,
        K=K,
        KB=power_of_2(K),
        WIDTH=weight.shape[-1],
        BD=BD,
        CH=t.CH,
    )
    return Launch(kernel, (batch, t.parts, t.blocks), arguments, 1)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    reverse: list[int],
    out: Tensor,
) -> None:
    """Convolve; see :func:`plan_forward`."""
    if x.numel():
        plan_forward(x, weight, bias, reverse, out).run(x)


def backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    reverse: list[int],
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients; see :func:`plan_backward`.

    Returns:
        tuple[Tensor, Tensor]: those of the weights and of the biases.
    """
    if x.numel():
        launch = plan_backward(grad_out, x, weight, bias, reverse, grad_x)
        launch.run(x)
        sums = launch.arguments['sums'].sum(0)
    else:
        sums = weight.new_zeros(weight.numel() + weight[..., 0].numel())
    shape, count = weight.shape, weight.numel()
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return (
        sums[:count].view(shape).to(weight.dtype),
        sums[count:].view(shape[:-1]).to(bias_dtype),
    )
