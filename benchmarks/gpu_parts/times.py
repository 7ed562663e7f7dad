# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The scan at shapes of vision models, beside limits and peers."""

import concurrent.futures
import multiprocessing
from typing import Any, Callable, Optional

import torch
import triton
import triton.language as tl

from transmamba_mm.ops.backends import (
    torch_chunked,
    triton_scan,
    triton_tiling,
)
from transmamba_mm.ops.backends.problem import ScanProblem

from . import Context, peers
from .timing import ALL, gpu_us, peak_mib, vision_scan

SECONDS = 240
# (B, D, L, N); the directions share tokens and gate.
SHAPES = (
    (64, 384, 197, 16),
    (128, 384, 197, 16),
    (64, 192, 784, 16),
    (16, 384, 3136, 1),
    (8, 192, 16384, 16),
    (1, 384, 4096, 16),
)
TINY_SHAPES = ((2, 8, 9, 4),)
DIRECTIONS = (1, 2, 4)
DTYPES = ('bfloat16', 'float32')
WORKERS = 12


def cases(tiny: bool) -> list[tuple[tuple, int, str]]:
    """(shape, directions, dtype) of all rows, the first shape first."""
    return [
        (shape, K, dtype)
        for shape in (TINY_SHAPES if tiny else SHAPES)
        for K in (DIRECTIONS[:2] if tiny else DIRECTIONS)
        for dtype in (DTYPES[1:] if tiny else DTYPES)
    ]


def problem(case, device) -> ScanProblem:
    shape, K, dtype = case
    return vision_scan(shape, K, getattr(torch, dtype), device)


def passes(p: ScanProblem) -> dict[str, Callable[[], object]]:
    """Our forward pass, and forward and backward."""

    def both():
        out, _, states = triton_scan.forward(p, keep=True)
        triton_scan.backward(p, states, out, ALL)

    return {
        'forward': lambda: triton_scan.forward(p, keep=False),
        'both': both,
    }


def compile_case(case) -> Optional[str]:
    """Fill Triton's cache with the kernels of one case; return an error."""
    try:
        for run_pass in passes(problem(case, torch.device('cuda'))).values():
            run_pass()
        torch.cuda.synchronize()
    except Exception as error:
        return f'{case}: {type(error).__name__}: {error}'[:500]
    return None


def in_parallel(function: Callable, jobs: list) -> list[str]:
    """Run jobs in processes of their own; return their errors."""
    context = multiprocessing.get_context('fork')
    with concurrent.futures.ProcessPoolExecutor(WORKERS, context) as pool:
        return [x for x in pool.map(function, jobs) if x is not None]


# --------------------------------------------------------------- limits


@triton.jit
def exponentials(x, y, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """``COUNT`` exponentials of each of eight values per element."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(COUNT):
        for j in tl.static_range(8):
            total += tl.exp2(value * (j - 4) + i)
    tl.store(y + at, total)


def limits(tiny: bool, device: torch.device) -> dict[str, float]:
    """Measure what the card can do: TB/s of a copy, exponentials per ps."""
    count = 1 << (10 if tiny else 29)
    x = torch.empty(count, dtype=torch.uint8, device=device).fill_(1)
    y = torch.empty_like(x)
    copied = 2 * count / gpu_us(lambda: y.copy_(x)) / 1e6
    blocks, block, steps = (1, 128, 2) if tiny else (132 * 64, 256, 64)
    x = torch.randn(blocks * block, device=device)
    y = torch.empty_like(x)
    took = gpu_us(lambda: exponentials[(blocks,)](x, y, block, steps))
    return {
        'copy_tb_s': copied,
        'exp_per_ps': blocks * block * steps * 8 / took / 1e6,
    }


def floors(p: ScanProblem, card: dict[str, float]) -> dict[str, float]:
    """Least microseconds by memory and by exponentials, forward and both.

    Each tensor is read or written once; backward reads the inputs and the
    gradient again and writes the gradients.  A step takes an exponential per
    state and two more for softplus and gate; the backward pass needs those
    of the forward pass again, and its own.
    """
    batch, K, length, channels, N = p.sizes
    inputs = sum(x.numel() * x.element_size() for x in p.tensors)
    out = p.u.numel() * p.u.element_size()
    forward = inputs + out
    backward = inputs + out + inputs
    exps = batch * K * length * channels * (N + 2)
    bytes_per_us = card['copy_tb_s'] * 1e6
    exps_per_us = card['exp_per_ps'] * 1e6
    return {
        'forward_memory': forward / bytes_per_us,
        'forward_exp': exps / exps_per_us,
        'both_memory': (forward + backward) / bytes_per_us,
        'both_exp': 3 * exps / exps_per_us,
    }


# ----------------------------------------------------------------- rows


def measure(case, context: Context, card: dict, mamba) -> dict[str, Any]:
    """Measure one row."""
    p = problem(case, context.device)
    ours = passes(p)
    row = dict(
        zip(('shape', 'K', 'dtype'), case),
        forward=gpu_us(ours['forward']),
        both=gpu_us(ours['both']),
        memory_mib=peak_mib(ours['both']),
        floors=floors(p, card),
        tiling=triton_tiling.of_problem(p)._asdict(),
    )
    if mamba is not None and p.u.is_cuda:
        theirs = peers.mamba_passes(mamba, p)
        row['mamba_forward'] = gpu_us(theirs['forward'])
        row['mamba_both'] = gpu_us(theirs['both'])
        # Once more, so that the two stand beside each other.
        row['forward'] = min(row['forward'], gpu_us(ours['forward']))
        row['both'] = min(row['both'], gpu_us(ours['both']))
        row['mamba_error'] = peers.mamba_error(mamba, p)
    first = case[0] in (SHAPES[0], TINY_SHAPES[0]) and case[1] == 1
    if first:
        row.update(torch_backend(p))
        if context.device.type == 'cuda' and case[2] == DTYPES[0]:
            row.update(peers.associative_scan_times(p))
    return row


def torch_backend(p: ScanProblem) -> dict[str, float]:
    """Our backend in PyTorch operations."""

    def both():
        out, _, states = torch_chunked.forward(p, True)
        torch_chunked.backward(p, states, out, ALL)

    with torch.no_grad():
        return {
            'torch_forward': gpu_us(
                lambda: torch_chunked.forward(p, False), runs=2
            ),
            'torch_both': gpu_us(both, runs=2),
        }


def run(context: Context) -> None:
    """Measure the limits, then row after row."""
    rows = cases(context.tiny)
    errors = [] if context.tiny else in_parallel(compile_case, rows)
    card = limits(context.tiny, context.device)
    mamba, reason = peers.mamba_kernels(context)
    results = dict(limits=card, mamba=reason, compile_errors=errors, rows=[])
    context.save(results)
    for case in rows:
        if context.left < 10:
            results['stopped'] = 'time was up'
            break
        try:
            row = measure(case, context, card, mamba)
        except Exception as error:
            row = dict(zip(('shape', 'K', 'dtype'), case), error=repr(error))
        results['rows'].append(row)
        context.save(results)
        if context.device.type == 'cuda':
            torch.cuda.empty_cache()


def markdown(results: dict) -> list[str]:
    """One row per case: times, limits, peers."""
    card = results['limits']
    lines = [
        f'Limits: copies move {card["copy_tb_s"]:.2f} TB/s (read and '
        f'written), {card["exp_per_ps"]:.2f} exponentials per ps. '
        f'mamba-ssm: {results["mamba"]}.',
        '',
        '| (B, D, L, N) | K | dtype | forward, us | / floor | f + b, us | '
        '/ floor | MiB | mamba-ssm forward | / ours | mamba-ssm f + b | '
        '/ ours |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for row in results['rows']:
        head = f'| {tuple(row["shape"])} | {row["K"]} | {row["dtype"]} |'
        if 'error' in row:
            lines.append(f'{head} {row["error"][:80]} |')
            continue
        floor = row['floors']
        least = {
            x: max(floor[f'{x}_memory'], floor[f'{x}_exp'])
            for x in ('forward', 'both')
        }
        cells = []
        for x in ('forward', 'both'):
            cells += [f'{row[x]:.0f}', f'{row[x] / least[x]:.2f}']
        memory = row['memory_mib']
        cells.append('-' if memory is None else f'{memory:.0f}')
        for x in ('forward', 'both'):
            theirs = row.get(f'mamba_{x}')
            cells += (
                ['-', '-']
                if theirs is None
                else [f'{theirs:.0f}', f'{theirs / row[x]:.2f}']
            )
        lines.append(f'{head} {" | ".join(cells)} |')
    others = [
        f'{tuple(row["shape"])}, {row["dtype"]}: PyTorch backend '
        f'{row["torch_forward"]:.0f} / {row["torch_both"]:.0f} us; compiled '
        f'associative scan, forward: {row.get("associative", "-")}'
        for row in results['rows']
        if 'torch_forward' in row
    ]
    return [*lines, '', *others]
