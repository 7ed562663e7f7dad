# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Running Triton kernels without a GPU: interpreted, or only compiled."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def interpreted(script):
    """Results of a script that runs kernels in Triton's interpreter.

    That must be switched on before the kernels are defined, hence a process
    of its own.  The script prints 'RESULTS ' and JSON.
    """
    pytest.importorskip('triton', minversion='3.3')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', script],
        env={
            **os.environ,
            'TRITON_INTERPRET': '1',
            'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    if 'only 0-dimensional arrays can be converted' in done.stderr:
        pytest.skip("this Triton's interpreter needs an older NumPy")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition('RESULTS ')[2])


class NoDevice:
    """Stands in for Triton's driver, so that it compiles without a GPU."""

    def __init__(self, capability):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget('cuda', capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return str(self.target)

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device('cpu')


def compiled(launch, capability, monkeypatch, folder):
    """PTX of what Triton would launch; ``launch.kernel`` is the kernel."""
    from triton.runtime import driver

    monkeypatch.setenv('TRITON_CACHE_DIR', str(folder))
    active = '_active' if hasattr(driver, '_active') else 'active'
    monkeypatch.setattr(driver, active, NoDevice(capability))
    kernel = launch.kernel.warmup(
        **launch.arguments, num_warps=launch.num_warps, grid=launch.grid
    )
    return kernel.asm['ptx']


def ptxas(ptx, folder):
    """Registers and bytes spilled per thread."""
    import triton

    folder.joinpath('kernel.ptx').write_text(ptx)
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/ptxas'
    if not tool.exists():
        pytest.skip('no ptxas')
    said = subprocess.run(
        [
            tool,
            '-v',
            '--gpu-name=' + re.search(r'\.target (sm_\w+)', ptx)[1],
            'kernel.ptx',
            '-o',
            'kernel.cubin',
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    return (
        int(re.search(r'Used (\d+) registers', said)[1]),
        int(re.search(r'(\d+) bytes spill stores', said)[1]),
    )
