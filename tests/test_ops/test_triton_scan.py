# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend 'triton' without a GPU, against a loop in float64.

The kernels run in Triton's interpreter, in a process of their own because it
must be switched on before they are defined, and are compiled for GPUs that
are not there.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton_offline
from triton_cases import CASES, SEGMENTS, problem
from triton_offline import compiled, ptxas

from transmamba_mm.ops import triton_launch
from transmamba_mm.ops.backends import triton_scan, triton_tiling

SCRIPT = Path(__file__).with_name('triton_cases.py')


# ---------------------------------------------------------- interpreted


@pytest.fixture(scope='module')
def interpreted():
    """Results of interpret(), from a process of its own."""
    return triton_offline.interpreted(SCRIPT)


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


@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('N', [1, 16])
def test_compiled_kernels(N, dtype, capability, monkeypatch, tmp_path):
    """What the sizes of tiles were chosen for still holds."""
    pytest.importorskip('triton', minversion='3.3')
    if triton_launch.interpreted():
        pytest.skip('kernels are interpreted')
    p = problem(L=197, D=384, N=N, K=2, dtype=dtype, shared=('u', 'z'))
    last = p.new_last_state()
    states = last.new_empty(triton_scan.states_shape(p))
    out = p.u.new_empty(1, 2, 197, 384)
    monkeypatch.setattr(triton_tiling, 'multiprocessors', lambda device: 132)
    reports = {}
    for launch in (
        *triton_scan.plan_forward(p, out, last, states),
        *triton_scan.plan_backward(p, states, out, [True] * 8),
    ):
        ptx = compiled(launch, capability, monkeypatch, tmp_path)
        steps = launch.arguments['CH']
        shuffles = ptx.count('shfl.sync') / steps
        name = launch.kernel.fn.__name__
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
    if triton_launch.interpreted():
        pytest.skip('kernels are interpreted')
    replace = dict(replace)
    if 'furthest' in replace:
        monkeypatch.setattr(triton_scan, 'FURTHEST', replace.pop('furthest'))
    p = problem(L=7, **replace)
    last = p.new_last_state()
    needs = [x is not None for x in p.tensors]
    states = last.new_empty(triton_scan.states_shape(p))
    monkeypatch.setattr(triton_tiling, 'multiprocessors', lambda device: 132)
    monkeypatch.setattr(triton_tiling, 'SHORTEST', 1)
    for launch in (
        *triton_scan.plan_forward(p, p.new_out(), last, None),
        *triton_scan.plan_backward(p, states, p.new_out(), needs),
    ):
        assert compiled(launch, 90, monkeypatch, tmp_path)


# -------------------------------------------------------------- choices


def test_sizes_of_tiles():
    for N in (1, 2, 3, 4, 5, 8, 16, 17, 64, 256):
        for channels in (1, 11, 16, 24, 384):
            t = triton_tiling.tiling(N, channels, 10**6)
            assert t.BN >= N and t.BN & (t.BN - 1) == 0
            assert 512 * t.num_warps >= t.BN * t.BD
            assert 16 <= t.BD <= max(16, 2 * channels)
            assert t.period % t.ahead == 0
    assert triton_tiling.tiling(16, 384, 1)[:5] == (16, 32, 2, 4, 1)
    assert triton_tiling.tiling(1, 192, 1)[:5] == (1, 32, 8, 1, 1)


def test_measured_sizes_of_tiles(monkeypatch):
    """Those of the table, on the card it is about, up to its size."""
    few = dict(
        capability='9.0',
        BN=16,
        bytes=2,
        most_scans=100,
        tile=[64, 4, 1, 2, 4],
        resident=[3, 2],
    )
    many = dict(few, most_scans=None, tile=[16, 8, 1, 1, 8])
    monkeypatch.setattr(triton_tiling, 'measured_tilings', lambda: [few, many])
    tiling = triton_tiling.tiling
    assert tiling(9, 384, 100, 2, '9.0') == (16, 64, 4, 1, 2, 4, (3, 2))
    assert tiling(9, 384, 101, 2, '9.0').BD == 16
    assert tiling(9, 24, 100, 2, '9.0')[:5] == (16, 32, 4, 1, 1)
    rule = tiling(9, 384, 100)
    for other in ((4, '9.0'), (2, '8.0'), (2, None)):
        assert tiling(9, 384, 100, *other) == rule


def test_table_of_tiles():
    """Every row is one that the kernels can run."""
    for row in triton_tiling.measured_tilings():
        most = row['most_scans'] or 10**9
        kind = row['bytes'], row['capability']
        t = triton_tiling.tiling(row['BN'], 4096, most, *kind)
        assert [t.BD, t.CH, t.span, t.num_warps, t.ahead] == row['tile']
        assert t.period % t.ahead == 0
        assert 512 * t.num_warps >= t.BN * t.BD


@pytest.mark.parametrize(
    ('length', 'resident', 'wanted'),
    [(400, 0, 1), (400, 8, 3), (400, 100, 10), (63, 100, 1), (9999, 9999, 63)],
)
def test_segments(length, resident, wanted, monkeypatch):
    """So many that there are enough warps; none is too short."""
    monkeypatch.setattr(triton_tiling, 'multiprocessors', lambda device: 3)
    p = problem(batch=2, K=2, L=length, D=64, N=16)  # eight warps
    t = triton_tiling.tiling(16, 64, 1)
    assert triton_tiling.segments(p, t, resident) == wanted


def test_wide_offsets_are_noticed():
    p = problem(L=2, D=16, N=1)
    assert not triton_scan._common_arguments(p, triton_tiling.of_problem(p))[
        'WIDE'
    ]
    far = torch.empty_strided(p.u.shape, (0, 0, 2**30, 1), device='meta')
    p = p._replace(u=far)
    assert triton_scan._common_arguments(p, triton_tiling.of_problem(p))[
        'WIDE'
    ]


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
