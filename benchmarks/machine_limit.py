# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The least time in which this machine could do a selective scan.

Per (l, n) and vector of channels the recurrence needs, whatever the program,
one exponential with its multiplication and three operations of a
multiply-add unit (``du * B``, the state, the output).  The backward pass
computes the exponentials and states again (two operations) and then needs
eight.  With one or few states per channel the memory decides instead.

``machine_limit.cpp`` measures the three rates on one core: exponentials (by
a polynomial of degree 5; also by a table, the fastest way known to us),
multiply-adds, and STREAM's triad.  They are measured in the same rounds as
the scans, so that other load and the clock slow both alike.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from ctypes import c_int64, c_void_p
from pathlib import Path
from typing import Callable, Optional

import torch

SOURCE = Path(__file__).with_name('machine_limit.cpp')
FLAGS = ['-O3', '-std=c++17', '-fPIC', '-shared', '-ffp-contract=off']
ISAS = {
    'AVX512': [
        *('-mavx512f', '-mavx512dq', '-mavx512vl', '-mfma'),
        '-mprefer-vector-width=512',
    ],
    'AVX2': ['-mavx2', '-mfma'],
}
COUNT = 240_000
TRIAD = 1 << 23  # elements: three arrays of 32 MiB
PREFIX = 'limit: '


class MachineLimit:
    """The probes, and limits from what they measured.

    Raises:
        RuntimeError: if this is no x86-64 processor with AVX2, or there is
            no C++ compiler.
    """

    def __init__(self):
        capability = torch.backends.cpu.get_cpu_capability()
        if capability not in ISAS:
            raise RuntimeError(f'it is not written for {capability}')
        names = [os.environ.get('CXX', ''), 'c++', 'g++', 'clang++']
        compiler = next(filter(None, map(shutil.which, names)), None)
        if compiler is None:
            raise RuntimeError('there is no C++ compiler')
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / 'limit.so'
            command = [compiler, *FLAGS, *ISAS[capability]]
            subprocess.run([*command, str(SOURCE), '-o', library], check=True)
            self.code = ctypes.CDLL(str(library))
        self.lanes = self.code.lanes()
        table = torch.exp2(torch.arange(self.lanes) / self.lanes)
        self.code.set_table(c_void_p(table.data_ptr()))
        for name in ('exp2_polynomial', 'exp2_table'):
            assert self._error(name) < 2e-7, name
        self.arrays = [torch.ones(TRIAD) for _ in range(3)]

    def _error(self, name: str) -> float:
        x = torch.linspace(-100, 20, 1 << 14)
        y = torch.empty_like(x)
        for i in range(0, len(x), self.lanes):
            at = [c_void_p(v.data_ptr() + 4 * i) for v in (x, y)]
            getattr(self.code, name)(*at)
        return (y / torch.exp2(x.double()) - 1).abs().max().item()

    def probes(self) -> dict[str, Callable[[], object]]:
        """Name -> function, to be timed among the candidates."""
        a, b, c = (c_void_p(x.data_ptr()) for x in self.arrays)
        code, count = self.code, c_int64(COUNT)
        return {
            f'{PREFIX}exp': lambda: code.run_polynomial(count),
            f'{PREFIX}exp by table': lambda: code.run_table(count),
            f'{PREFIX}fma': lambda: code.run_fma(count),
            f'{PREFIX}triad': lambda: code.run_triad(a, b, c, c_int64(TRIAD)),
        }

    def rates(self, times: dict[str, float]) -> dict[str, float]:
        """Rates from times of the probes, which it takes out of ``times``.

        Returns:
            dict[str, float]: ns per 16 lanes, and GB/s of the triad.
        """
        ns = 1e6 / COUNT * 16 / self.lanes
        probes = {k: times.pop(k) for k in list(times) if PREFIX in k}
        triad = probes.pop(f'{PREFIX}triad')
        rates = {
            f'{k[len(PREFIX) :]}, ns': ms * ns for k, ms in probes.items()
        }
        return {**rates, 'triad, GB/s': 12 * TRIAD / triad * 1e-6}


def limit_ms(
    rates: dict[str, float],
    shape: tuple[int, int, int, int],
    backward: bool,
    exp: str = 'exp',
) -> float:
    """Least time of a scan of a shape (B, D, L, N).

    The memory's part counts ``u``, ``delta`` and the output forward, and
    backward these, the gradient and the two gradients of the inputs, each
    once.

    Args:
        rates: of :meth:`MachineLimit.rates`.
        shape: (B, D, L, N).
        backward: whether with the backward pass.
        exp: ``'exp'`` or ``'exp by table'``.

    Returns:
        float: the larger of the arithmetic's and the memory's time.
    """
    B, D, L, N = shape
    exp_ns, fma_ns = rates[f'{exp}, ns'], rates['fma, ns']
    ns = exp_ns + 3 * fma_ns
    count = 12
    if backward:
        ns += exp_ns + (2 + 8) * fma_ns
        count += 20
    arithmetic = B * D * L * N / 16 * ns * 1e-6
    memory = B * D * L * count / rates['triad, GB/s'] * 1e-6
    return max(arithmetic, memory)


def make() -> Optional[MachineLimit]:
    """Return the probes, or None after saying why there are none."""
    try:
        return MachineLimit()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f'The limit of the machine is not measured: {error}')
        return None
