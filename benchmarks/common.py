# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Timing that holds on a shared machine.

The candidates of a comparison run in turn, round after round, in one process
on one thread; each gets the median of its CPU times.  Other load then slows
all of them alike, and the ratios are the result.
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Callable, Optional

import torch


def parse_args(doc: str) -> argparse.Namespace:
    """Parse the options which every benchmark has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--json', type=Path, help='also write results here')
    parser.add_argument(
        '--quick', action='store_true', help='small sizes, few rounds'
    )
    return parser.parse_args()


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
) -> dict[str, float]:
    """Time the candidates in turn.

    Args:
        candidates: name -> function of no arguments.
        rounds: times each runs after one warm-up.  Default 9.
        slow_seconds: a candidate whose warm-up takes longer runs only
            ``slow_rounds`` times.  Default 1.
        slow_rounds: see above.  Default 3.

    Returns:
        dict[str, float]: name -> median CPU milliseconds.
    """
    times = {name: [] for name in candidates}
    limits = {}
    for name, function in candidates.items():
        seconds = _cpu_seconds(function)
        limits[name] = slow_rounds if seconds > slow_seconds else rounds
    for i in range(rounds):
        for name, function in candidates.items():
            if i < limits[name]:
                times[name].append(_cpu_seconds(function))
    return {k: 1e3 * statistics.median(v) for k, v in times.items()}


def _cpu_seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


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


def write_json(path: Optional[Path], results: dict) -> None:
    """Write results with the environment, if a path was given."""
    if path is not None:
        results = {'environment': environment(), **results}
        path.write_text(json.dumps(results, indent=2) + '\n')
