# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Other implementations of the scan on a GPU."""

import importlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F

from transmamba_mm.ops.backends import mamba_ssm_cuda, triton_scan
from transmamba_mm.ops.backends.problem import ScanProblem

from . import Context
from .timing import gpu_us

#: Names the folder that ``tools/dev/pack_gpu_kit.sh`` has made.
KIT = 'TRANSMAMBA_GPU_KIT'
BUILD_SECONDS = 240
_NVCC_FLAGS = [
    '-O3',
    '-std=c++17',
    '--expt-relaxed-constexpr',
    '--expt-extended-lambda',
    '--use_fast_math',
    *(
        f'-U__CUDA_NO_{kind}__'
        for kind in (
            'HALF_OPERATORS',
            'HALF_CONVERSIONS',
            'BFLOAT16_OPERATORS',
            'BFLOAT16_CONVERSIONS',
            'BFLOAT162_OPERATORS',
            'BFLOAT162_CONVERSIONS',
        )
    ),
]


def start_build(folder: Path) -> Optional[subprocess.Popen]:
    """Build mamba-ssm's scan from its sdist in the background.

    For the one GPU that is there: the package's own set-up builds for all.
    None if there is no kit, no compiler, or nothing to be built.
    """
    kit = os.environ.get(KIT)
    if importlib.util.find_spec(mamba_ssm_cuda.MODULE) or not kit:
        return None
    archives = sorted(Path(kit).glob('sdists/mamba_ssm-*.tar.gz'))
    if not archives:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        f'import sys; sys.path[:0] = {sys.path[:2]!r}; '
        'from gpu_parts import peers; '
        f'peers.build({str(archives[-1])!r}, {str(folder)!r})'
    )
    (folder / 'finished').unlink(missing_ok=True)
    with open(folder / 'build.log', 'w') as log:
        return subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', code],
            stdout=log,
            stderr=log,
        )


def build(archive: str, folder: str) -> None:
    """Compile the kernels of an sdist; run in a process of its own."""
    from torch.utils.cpp_extension import load

    try:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter='data')
        (source,) = Path(folder).glob('mamba_ssm-*/csrc/selective_scan')
        major, minor = torch.cuda.get_device_capability()
        os.environ['TORCH_CUDA_ARCH_LIST'] = f'{major}.{minor}'
        sources = [source / 'selective_scan.cpp', *source.glob('*.cu')]
        load(
            mamba_ssm_cuda.MODULE,
            list(map(str, sources)),
            extra_cflags=['-O3', '-std=c++17'],
            extra_cuda_cflags=_NVCC_FLAGS,
            extra_include_paths=[str(source)],
            build_directory=folder,
        )
    finally:
        (Path(folder) / 'finished').touch()


def mamba_kernels(context: Context) -> tuple[Optional[ModuleType], str]:
    """Return mamba-ssm's extension module, or why there is none."""
    folder = context.out / 'mamba_build'
    library = folder / f'{mamba_ssm_cuda.MODULE}.so'
    log = folder / 'build.log'
    until = time.monotonic() + min(BUILD_SECONDS, context.left / 2)
    while log.exists() and not (folder / 'finished').exists():
        if time.monotonic() > until:
            return None, 'its kernels were not built in time'
        time.sleep(1)
    if library.exists():
        sys.path.append(str(folder))
    reason = mamba_ssm_cuda.probe()
    if reason is not None:
        return None, reason
    return importlib.import_module(mamba_ssm_cuda.MODULE), 'its CUDA kernels'


def mamba_passes(
    kernels: ModuleType, p: ScanProblem
) -> dict[str, Callable[[], object]]:
    """Their kernels on tensors as they like them, time last.

    Directions become channels of one scan, as VMamba does it; copies into
    that layout and flips are left out of the account.
    """
    _, K, length, channels, N = p.sizes

    def tokens(x):
        x = x.expand(-1, K, -1, -1).transpose(2, 3)
        return x.reshape(x.shape[0], K * channels, length).contiguous()

    def weights(x):
        return x.expand(-1, K, -1, -1, -1).squeeze(2).mT.contiguous()

    inputs = (
        tokens(p.u),
        tokens(p.delta),
        p.A.reshape(K * channels, N).contiguous(),
        weights(p.B),
        weights(p.C),
        p.D.flatten(),
        tokens(p.z),
        p.delta_bias.flatten(),
    )

    def forward():
        return kernels.fwd(*inputs, True)

    def both():
        out, states, gated = kernels.fwd(*inputs, True)
        return kernels.bwd(*inputs, gated, states, out, None, True, False)

    return {'forward': forward, 'both': both}


def mamba_error(kernels: ModuleType, p: ScanProblem) -> float:
    """Largest difference of one direction's output over its magnitude."""
    if len(p.reverse) > 1:
        return float('nan')
    theirs = mamba_passes(kernels, p)['forward']()[2].mT.float()
    ours = triton_scan.forward(p, False)[0][:, 0].float()
    return float((theirs - ours).abs().max() / ours.abs().max())


def associative_scan_times(p: ScanProblem) -> dict[str, Any]:
    """A scan by PyTorch's associative_scan, compiled, forward only."""
    from torch._higher_order_ops.associative_scan import associative_scan

    u, delta, z = (x[:, 0].float() for x in (p.u, p.delta, p.z))
    B, C = (x[:, 0, 0].float() for x in (p.B, p.C))

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    @torch.compile
    def scan(u, delta, A, B, C, D, z, bias):
        dt = F.softplus(delta + bias).unsqueeze(-1)
        steps = (
            torch.exp(dt * A),
            dt * u.unsqueeze(-1) * B.unsqueeze(2),
        )
        _, h = associative_scan(combine, steps, dim=1)
        y = (h * C.unsqueeze(2)).sum(-1) + D * u
        return y * F.silu(z)

    try:
        with torch.no_grad():
            inputs = u, delta, p.A[0], B, C, p.D[0], z, p.delta_bias[0]
            return {'associative': round(gpu_us(lambda: scan(*inputs)))}
    except Exception as error:
        return {'associative': f'{type(error).__name__}: {error}'[:200]}
