# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Timing that holds on a shared machine.

The candidates of a comparison run in turn, round after round, in one process
on one thread; each gets the median of its CPU times.  Other load then slows
all of them alike, and the ratios are the result.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import math
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable, Optional

import torch


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser with the options which every benchmark has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--json', type=Path, help='also write results here')
    parser.add_argument(
        '--quick', action='store_true', help='small sizes, few rounds'
    )
    return parser


def parse_args(doc: str) -> argparse.Namespace:
    """Parse the options which every benchmark has."""
    return make_parser(doc).parse_args()


def environment() -> dict:
    """Describe what the figures depend on."""
    return {
        'torch': torch.__version__,
        'python': platform.python_version(),
        'machine': platform.machine(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
    }


def interleaved(
    candidates: dict[str, Callable[[], object]],
    rounds: int = 9,
    slow_seconds: float = 1.0,
    slow_rounds: int = 3,
    once_seconds: float = math.inf,
    sample_seconds: float = 0.1,
) -> dict[str, float]:
    """Time the candidates in turn.

    A sample is the mean of as many runs as fill ``sample_seconds``, so that
    a fast candidate is timed in its own caches, as slow ones are, and not in
    those that the candidate before it has left.

    Args:
        candidates: name -> function of no arguments.
        rounds: samples of each, after one warm-up.  Default 9.
        slow_seconds: a candidate whose warm-up takes longer is sampled only
            ``slow_rounds`` times.  Default 1.
        slow_rounds: see above.  Default 3.
        once_seconds: a candidate whose warm-up takes longer does not run
            again: the warm-up counts.  Default infinity.
        sample_seconds: least duration of a sample.  Default 0.1.

    Returns:
        dict[str, float]: name -> median CPU milliseconds of one run.
    """
    times = {name: [] for name in candidates}
    samples, runs = {}, {}
    for name, function in candidates.items():
        seconds = cpu_seconds(function)
        samples[name] = slow_rounds if seconds > slow_seconds else rounds
        if seconds > once_seconds:
            times[name].append(seconds)
            samples[name] = 0
        if seconds < sample_seconds:  # the first run is slower than the rest
            seconds = cpu_seconds(function)
        runs[name] = math.ceil(sample_seconds / max(seconds, 1e-6))
    for i in range(rounds):
        for name, function in candidates.items():
            if i < samples[name]:
                times[name].append(cpu_seconds(function, runs[name]))
    return {k: 1e3 * statistics.median(v) for k, v in times.items()}


def cpu_seconds(function: Callable[[], object], runs: int = 1) -> float:
    """CPU time of one of ``runs`` runs, of all threads."""
    start = time.process_time()
    for _ in range(runs):
        function()
    return (time.process_time() - start) / runs


def keep_memory() -> None:
    """Make the C library keep freed memory, where it is glibc.

    Otherwise it hands tensors of more than 32 MiB back at once, and whether
    the next ones get cleared pages or old ones is chance.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def extra_peak_mb(function: Callable[[], object]) -> Optional[float]:
    """Peak resident memory while ``function`` runs, above that before it.

    Returns:
        float: MiB, or None where the kernel does not tell (not Linux).
    """
    function()  # one-off allocations of libraries are not its own
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # reset the peak
    except (OSError, AttributeError):
        return None
    before = _status_mb('VmRSS')
    function()
    return _status_mb('VmHWM') - before


def _status_mb(field: str) -> float:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def print_table(
    title: str, figures: dict[str, float], base: str, unit: str
) -> None:
    """Print one line per candidate, with the ratio to ``base``."""
    print(f'\n{title}')
    for name, value in figures.items():
        ratio = value / figures[base]
        print(f'  {name:<12}{value:>12.2f} {unit}{ratio:>10.1f} x')


def print_markdown(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Print a table in Markdown; floats with three significant digits."""
    print(f'\n{title}\n')
    print('| ' + ' | '.join(header) + ' |')
    print('|' + '---|' * len(header))
    for row in rows:
        print('| ' + ' | '.join(map(_cell, row)) + ' |', flush=True)


def _cell(value: object) -> str:
    if value is None:
        return '-'
    if not isinstance(value, float):
        return str(value)
    if math.isfinite(value) and abs(value) >= 100:
        return f'{value:.0f}'
    return f'{value:#.3g}'.rstrip('.')


def write_json(path: Optional[Path], results: dict) -> None:
    """Write results with the environment, if a path was given."""
    if path is not None:
        results = {'environment': environment(), **results}
        path.write_text(json.dumps(results, indent=2) + '\n')
