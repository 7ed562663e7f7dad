# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Peak memory of a scan forward and backward.

``python benchmarks/scan_memory.py cpu`` prints that of one candidate in MiB;
``scan.py`` runs it for each, so that every one has a fresh process.
"""

import subprocess
import sys
from pathlib import Path

import common
import peers
import torch

LONG = (1, 192, 16384, 16)
QUICK_LONG = (1, 64, 2048, 16)


def memory(names: list[str], quick: bool) -> dict[str, float]:
    """Peak memory forward and backward, each in a process of its own."""
    found = {}
    for name in names:
        command = [sys.executable, str(Path(__file__).resolve()), name]
        done = subprocess.run(
            command + ['quick'] * quick, stdout=subprocess.PIPE, text=True
        )
        last_line = (done.stdout.strip().splitlines() or [''])[-1]
        try:
            found[name] = float(last_line)
        except ValueError:
            print(f'memory of {name}: not measured')
    base = next(iter(found.values()), None)
    common.print_markdown(
        'Peak extra memory, forward and backward, (B, D, L, N) = '
        f'{QUICK_LONG if quick else LONG}',
        ['', 'MiB', 'ratio'],
        [(k, v, v / base) for k, v in found.items()],
    )
    return found


def main() -> None:
    """Measure one candidate in this process."""
    torch.set_num_threads(1)
    shape = QUICK_LONG if 'quick' in sys.argv else LONG
    B, D, L, _ = shape
    scan, inputs = peers.all_scans()[sys.argv[1]], peers.scan_inputs(shape)
    dout = torch.randn(B, L, D).mT
    print(
        common.extra_peak_mb(
            lambda: peers.forward_backward(scan, inputs, dout)
        )
    )


if __name__ == '__main__':
    main()
