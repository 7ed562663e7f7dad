# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Clocks and random scans that the parts share."""

import statistics
import time
from typing import Callable, Optional

import torch

from transmamba_mm.ops.backends.problem import ScanProblem

#: Cycles for which the GPU waits while calls are queued, so that they run
#: back to back, whatever Python takes to make them.
QUEUE_CYCLES = 12_000_000


def gpu_us(function: Callable[[], object], runs: int = 10) -> float:
    """Microseconds of one run on the GPU: best of three queued series.

    Without a GPU, of one run on the CPU.
    """
    if not torch.cuda.is_available():
        start = time.perf_counter()
        function()
        return 1e6 * (time.perf_counter() - start)
    function()
    function()
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(QUEUE_CYCLES)
        start.record()
        for _ in range(runs):
            function()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / runs)
    return min(times)


def wall_ms(function: Callable[[], object], seconds: float = 1.0) -> float:
    """Milliseconds of one run as a user sees it, Python included; median."""
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    once = time.perf_counter() - start
    if once < seconds:
        function()
    times = []
    synchronize()
    for _ in range(max(1, min(30, round(seconds / max(once, 1e-4))))):
        start = time.perf_counter()
        function()
        synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(function: Callable[[], object]) -> Optional[float]:
    """GPU memory that a run takes beyond what was there before."""
    if not torch.cuda.is_available():
        return None
    function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def vision_scan(
    shape: tuple[int, int, int, int],
    K: int,
    dtype: torch.dtype,
    device: torch.device,
    orders: bool = False,
) -> ScanProblem:
    """Random scan as in a block of a vision Mamba at initialisation.

    Args:
        shape: (B, D, L, N).
        K: directions over shared tokens and gate, every second reversed.
        dtype: of tokens and of ``B`` and ``C``, which are slices of one
            projection, as in the models.
        device: where it lives.
        orders: whether the directions have orders.
    """
    B, D, L, N = shape
    torch.manual_seed(0)

    def tokens(k):
        return torch.randn(B, k, L, D, device=device).to(dtype)

    rank = max(1, D // 32)
    weights = torch.randn(B, K, 1, L, rank + 2 * N, device=device).to(dtype)
    _, weights_B, weights_C = weights.split([rank, N, N], dim=-1)
    rows = None
    if orders:
        rows = [torch.randperm(L, device=device) for _ in range(K)]
        rows = torch.stack(rows).int()
    rates = torch.arange(1.0, N + 1, device=device)
    return ScanProblem(
        tokens(1),
        tokens(K) * 0.1,
        -rates.expand(K, D, N).contiguous(),
        weights_B,
        weights_C,
        torch.ones(K, D, device=device),
        tokens(1),
        torch.full((K, D), -4.0, device=device),
        True,
        rows,
        tuple(bool(k % 2) for k in range(K)),
        False,
        True,
    )


#: What training needs gradients of: everything.
ALL = (True,) * 8
