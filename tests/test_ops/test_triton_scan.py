# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend 'triton' without a GPU, against a loop in float64.

The kernels run in Triton's interpreter, in a process of their own because it
must be switched on before they are defined, and are compiled for GPUs that
are not there.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton_cases import CASES, SEGMENTS, problem

from transmamba_mm.ops.backends import triton_scan

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name('triton_cases.py')


# ---------------------------------------------------------- interpreted


@pytest.fixture(scope='module')
def interpreted():
    """Results of interpret(), from a process of its own."""
    pytest.importorskip('triton', minversion='3.3')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', SCRIPT],
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


@pytest.mark.parametrize('name', [*CASES, *SEGMENTS, 'wide'])
def test_interpreted_kernels(interpreted, name):
    low = {**CASES, **SEGMENTS}.get(name, {}).get('dtype')
    for what, error in interpreted[name].items():
        wide = what in ('last_state', 'A', 'D', 'delta_bias')
        assert error <= (2e-2 if low and not wide else 1e-5), what


def test_nan_and_infinity_go_where_they_should(interpreted):
    assert not any(interpreted['not finite'].values()), interpreted


def test_nothing_to_scan(interpreted):
    assert interpreted['empty'] == [0, 0]


# ------------------------------------------------------------- compiled


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


def compiled(launch, capability, monkeypatch):
    """PTX of what Triton would launch."""
    from triton.runtime import driver

    active = '_active' if hasattr(driver, '_active') else 'active'
    monkeypatch.setattr(driver, active, NoDevice(capability))
    kernel = launch.function.warmup(
        **launch.arguments, **launch.options, grid=launch.grid
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


@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('N', [1, 16])
def test_compiled_kernels(N, dtype, capability, monkeypatch, tmp_path):
    """What the sizes of tiles were chosen for still holds."""
    pytest.importorskip('triton', minversion='3.3')
    if triton_scan._interpreted():
        pytest.skip('kernels are interpreted')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    p = problem(L=197, D=384, N=N, K=2, dtype=dtype, shared=('u', 'z'))
    last = p.new_last_state()
    states = last.new_empty(triton_scan.states_shape(p))
    out = p.u.new_empty(1, 2, 197, 384)
    monkeypatch.setattr(triton_scan, '_multiprocessors', lambda device: 132)
    reports = {}
    for launch in (
        *triton_scan.plan_forward(p, out, last, states),
        *triton_scan.plan_backward(p, states, out, [True] * 8),
    ):
        ptx = compiled(launch, capability, monkeypatch)
        steps = launch.arguments['CH']
        shuffles = ptx.count('shfl.sync') / steps
        name = launch.kernel
        if launch.arguments.get('ENDS'):
            name = 'ends'
        reports[name] = (shuffles, *ptxas(ptx, tmp_path))
    assert len(reports) == 4
    for name in ('scan_forward', 'ends', 'scan_adjoint'):
        shuffles, _, spilled = reports[name]
        assert (shuffles, spilled) == (0, 0), name
    shuffles, _, spilled = reports['scan_backward']
    assert shuffles <= (48 if N == 16 else 10)
    assert spilled <= (256 if N == 16 else 0)


@pytest.mark.parametrize(
    'replace',
    [
        dict(N=17, D=24, without=('z',)),
        dict(N=64, D=40, order=True, furthest=0),
        dict(N=1, D=40, G=2, by_step=True, softplus=False),
        dict(N=3, D=8, channels_first=True, dtype='float16'),
    ],
)
def test_other_kernels_compile(replace, monkeypatch, tmp_path):
    pytest.importorskip('triton', minversion='3.3')
    if triton_scan._interpreted():
        pytest.skip('kernels are interpreted')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    replace = dict(replace)
    if 'furthest' in replace:
        monkeypatch.setattr(triton_scan, 'FURTHEST', replace.pop('furthest'))
    p = problem(L=7, **replace)
    last = p.new_last_state()
    needs = [x is not None for x in p.tensors]
    states = last.new_empty(triton_scan.states_shape(p))
    monkeypatch.setattr(triton_scan, '_multiprocessors', lambda device: 132)
    monkeypatch.setattr(triton_scan, 'SHORTEST', 1)
    for launch in (
        *triton_scan.plan_forward(p, p.new_out(), last, None),
        *triton_scan.plan_backward(p, states, p.new_out(), needs),
    ):
        assert compiled(launch, 90, monkeypatch)


# -------------------------------------------------------------- choices


def test_sizes_of_tiles():
    for N in (1, 2, 3, 4, 5, 8, 16, 17, 64, 256):
        for channels in (1, 11, 16, 24, 384):
            t = triton_scan.tiling(N, channels, 10**6)
            assert t.BN >= N and t.BN & (t.BN - 1) == 0
            assert 512 * t.num_warps >= t.BN * t.BD
            assert 16 <= t.BD <= max(16, 2 * channels)
    assert triton_scan.tiling(16, 384, 1)[:5] == (16, 32, 4, 2, 1)
    assert triton_scan.tiling(1, 192, 1).BD == 32
    assert triton_scan.tiling(1, 192, 10**6).BD == 64


def test_wide_offsets_are_noticed():
    p = problem(L=2, D=16, N=1)
    assert not triton_scan._common_arguments(p, triton_scan._tiling(p))['WIDE']
    far = torch.empty_strided(p.u.shape, (0, 0, 2**30, 1), device='meta')
    p = p._replace(u=far)
    assert triton_scan._common_arguments(p, triton_scan._tiling(p))['WIDE']


def test_refused():
    p = problem(N=4)
    assert triton_scan.refuses(p) is None
    assert 'constant' in triton_scan.refuses(p._replace(B=torch.ones(8, 4)))
    assert '257 states' in triton_scan.refuses(problem(L=1, N=257))
    assert '32 dir' in triton_scan.refuses(problem(L=1, D=1, N=1, K=32))


def test_why_it_is_unavailable(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cpu, cuda = torch.device('cpu'), torch.device('cuda')
    assert not triton_scan.supports(cpu, torch.float32)
    assert not triton_scan.supports(cuda, torch.float32)
    monkeypatch.setitem(sys.modules, 'triton', SimpleNamespace())
    sys.modules['triton'].__version__ = '3.6.0'
    assert 'sees no GPU' in triton_scan.probe()
    sys.modules['triton'].__version__ = '3.2.0+git1'
    assert '3.2.0+git1 is too old' in triton_scan.probe()
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'not installed' in triton_scan.probe()
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert triton_scan.supports(cpu, torch.bfloat16)
    assert not triton_scan.supports(cpu, torch.float64)
