# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Import time beside that of the packages we build on.

Run from the repository root, with the package installed::

    python benchmarks/import_time.py

Each import runs in fresh interpreters, in turn; CPU time, median. The peer is
``mmpretrain.models`` and ``mmrazor.models`` with nothing but the stub that
mmrazor needs on torch >= 2.
"""

import statistics
import subprocess
import sys

ROUNDS = 7
_TIMED = (
    'import time; t = time.process_time(); {}; print(time.process_time() - t)'
)
# Importing the cure alone would import the whole package, hence its file.
PEER = (
    'import importlib.util as u, sys; '
    "s = u.spec_from_file_location('kd', {path!r}); "
    'm = u.module_from_spec(s); s.loader.exec_module(m); m.ensure_mmrazor(); '
    'import mmpretrain.models, mmrazor.models'
)


def seconds(statement: str) -> float:
    """CPU seconds of a statement in a fresh interpreter."""
    output = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _TIMED.format(statement)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return float(output.splitlines()[-1])


def main() -> None:
    """Prints medians and the ratio."""
    import transmamba_mm.compat.mmrazor_kd as cure

    statements = {
        'mmpretrain.models + mmrazor.models': PEER.format(path=cure.__file__),
        'transmamba_mm': 'import transmamba_mm',
    }
    times = {name: [] for name in statements}
    for _ in range(ROUNDS):
        for name, statement in statements.items():
            times[name].append(seconds(statement))
    medians = {name: statistics.median(t) for name, t in times.items()}
    peer, ours = medians.values()
    for name, value in medians.items():
        print(f'{name:<36}{value:6.2f} s')
    print(f'ratio: {ours / peer:.2f}')


if __name__ == '__main__':
    main()
