# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend 'triton', against a loop in float64.

Without a GPU, the kernels run in Triton's interpreter, in a process of their
own because it must be switched on before they are defined, and are compiled
for GPUs that are not there.
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
import torch.nn.functional as F

from transmamba_mm.ops.backends import triton_scan
from transmamba_mm.ops.backends.problem import ScanProblem

ROOT = Path(__file__).resolve().parents[2]
NAMES = ScanProblem._fields[:8]


def of(x, k):
    """What direction k has of a tensor."""
    if x is None:
        return None
    axis = 1 if x.dim() > 3 else 0
    return x.select(axis, min(k, x.shape[axis] - 1))


def oracle(p):
    """Straight from the definition of ScanProblem, in float64."""
    batch, K, L, D, N = p.sizes
    ys, states = [], []
    for k in range(K):
        u, delta, A, B, C, skip, z, bias = (of(x, k) for x in p.tensors)
        h, y = u.new_zeros(batch, D, N), [None] * L
        for t in range(L):
            s = L - 1 - t if p.reverse[k] else t
            at = s if p.orders is None else int(p.orders[k, s])
            q = t if p.by_step else at
            dt = delta[:, q] if bias is None else delta[:, q] + bias
            dt = F.softplus(dt) if p.delta_softplus else dt
            B_q, C_q = (
                x[:, :, q].repeat_interleave(D // x.shape[1], 1)
                for x in (B, C)
            )
            h = torch.exp(dt[..., None] * A) * h
            h = h + (dt * u[:, at])[..., None] * B_q
            y[at] = (h * C_q).sum(-1)
            if skip is not None:
                y[at] = y[at] + skip * u[:, at]
            if z is not None:
                y[at] = y[at] * F.silu(z[:, at])
        ys.append(torch.stack(y, 1))
        states.append(h)
    out = torch.stack(ys, 1)
    if p.merge:
        out = out.sum(1, keepdim=True)
    return out, torch.stack(states, 1)


def problem(
    batch=1,
    K=1,
    L=11,
    D=8,
    N=4,
    G=1,
    shared=(),
    without=(),
    dtype='float32',
    softplus=True,
    order=False,
    reverse=None,
    by_step=False,
    merge=False,
    channels_first=False,
    device='cpu',
):
    """Random problem; ``shared`` tensors are the same in all directions."""
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)

    def tokens(name):
        k = 1 if name in shared else K
        if channels_first:
            return torch.randn(batch, k, D, L).transpose(2, 3)
        return torch.randn(batch, k, L, D)

    def weights(name):
        k = 1 if name in shared else K
        # As sliced from a projection that has more outputs.
        return torch.randn(batch, k, G, L, N + 3)[..., 3:]

    tensors = {
        'u': tokens('u'),
        'delta': 1.5 * tokens('delta') - 1,
        'A': -torch.rand(1 if 'A' in shared else K, D, N) * 4,
        'B': weights('B'),
        'C': weights('C'),
        'D': torch.randn(1 if 'D' in shared else K, D),
        'z': tokens('z'),
        'delta_bias': torch.randn(1 if 'delta_bias' in shared else K, D),
    }
    if not softplus:
        tensors['delta'] = tensors['delta'].abs()
        tensors['delta_bias'] = tensors['delta_bias'].abs()
    tensors = {
        name: None
        if name in without
        else x.to(device, torch.float32 if x.dim() < 4 else dtype)
        for name, x in tensors.items()
    }
    orders = None
    if order:
        orders = torch.stack([torch.randperm(L) for _ in range(K)])
        orders = orders.int().to(device)
    return ScanProblem(
        **tensors,
        delta_softplus=softplus,
        orders=orders,
        reverse=tuple(reverse or [False] * K),
        by_step=by_step,
        merge=merge,
    )


def errors(p, needs=(True,) * 8, spread=False):
    """Largest error of each result over the largest value of the truth."""
    wide = [
        None if x is None else x.double().cpu().requires_grad_()
        for x in p.tensors
    ]
    orders = None if p.orders is None else p.orders.cpu()
    truth = p._replace(**dict(zip(NAMES, wide)), orders=orders)
    out, last = oracle(truth)
    grad = torch.randn(out.shape, dtype=torch.float64)
    if spread:  # as the gradient of a sum: all strides are 0
        grad = torch.ones((), dtype=torch.float64).expand(out.shape)
    grad_out = grad.to(p.u.device, p.u.dtype)
    if spread:
        grad_out = torch.ones((), dtype=p.u.dtype, device=p.u.device)
        grad_out = grad_out.expand(out.shape)
    grads = torch.autograd.grad(
        (out * grad_out.cpu().double()).sum(),
        [x for x in wide if x is not None],
    )
    found, found_last, states = triton_scan.forward(p, keep=True)
    found_grads = triton_scan.backward(p, states, grad_out, needs)
    assert states.shape == triton_scan.states_shape(p)
    assert found.dtype == p.u.dtype and found_last.dtype == torch.float32
    pairs = {'out': (found, out), 'last_state': (found_last, last)}
    grads = iter(grads)
    for name, x, found_grad, need in zip(NAMES, p.tensors, found_grads, needs):
        if x is None:
            assert found_grad is None
            continue
        expected = next(grads)
        if not need:
            assert found_grad is None
            continue
        assert found_grad.dtype == x.dtype
        pairs[name] = found_grad, expected
    again, _, nothing = triton_scan.forward(p, keep=False)
    assert nothing.shape == (0,) and torch.equal(again, found)
    results = {}
    for name, (x, y) in pairs.items():
        assert x.shape == y.shape and x.is_contiguous(), name
        error = (x.double().cpu() - y).abs().max()
        error /= y.abs().max().clamp_min(1e-6)
        results[name] = float(error.nan_to_num(nan=float('inf')))
    return results


ALL_SHARED = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
# Parameters of problem() and, after '/', errors().
CASES = {
    'plain': dict(L=11, D=8, N=4),
    'whole chunks': dict(L=8, D=16, N=1),
    'two levels of chunks': dict(L=11, D=20, N=16),
    'groups': dict(batch=2, L=9, D=12, N=3, G=2, channels_first=True),
    'only what is needed': dict(
        L=5, D=16, N=3, without=('D', 'z', 'delta_bias'), softplus=False
    ),
    'no gradient of z and B': dict(
        L=5, D=8, N=1, needs=(1, 0, 1, 0, 1, 1, 0, 1)
    ),
    'four directions, merged': dict(
        K=4,
        L=6,
        D=8,
        N=1,
        shared=('u', 'z'),
        order=True,
        reverse=(0, 1, 0, 1),
        by_step=True,
        merge=True,
    ),
    'two directions, stacked': dict(
        K=2, L=5, D=8, N=3, shared=ALL_SHARED, reverse=(0, 1), spread=True
    ),
    'ordered': dict(
        batch=2, K=2, L=9, D=8, N=2, shared=('B', 'A'), order=True, merge=True
    ),
    'bfloat16': dict(
        K=2, L=9, D=8, N=4, dtype='bfloat16', shared=('u',), merge=True
    ),
    'one step': dict(L=1, D=8, N=4, dtype='float16'),
    'two blocks': dict(L=5, D=36, N=1, G=1),
}


def run_case(case):
    case = dict(case)
    keep = {k: case.pop(k) for k in ('needs', 'spread') if k in case}
    return errors(problem(**case), **keep)


def not_finite(name, value):
    """Where results are not finite, ours and the truth's."""
    p = problem(L=5, D=8, N=3, G=2)
    getattr(p, name)[0, 0, ..., 2, 1] = value
    wide = [x.double().requires_grad_() for x in p.tensors]
    truth = oracle(p._replace(**dict(zip(NAMES, wide))))
    grads = torch.autograd.grad(truth[0].sum(), wide)
    out, last, states = triton_scan.forward(p, keep=True)
    found = triton_scan.backward(p, states, torch.ones_like(out), (True,) * 8)
    names = ('out', 'last_state', *NAMES)
    return [
        name
        for name, x, y in zip(names, (out, last, *found), (*truth, *grads))
        if not torch.equal(x.isfinite(), y.isfinite())
    ]


def empty(**sizes):
    """Shapes of the results of a problem of size 0, and their sums."""
    p = problem(**sizes)
    out, last, states = triton_scan.forward(p, keep=True)
    grads = triton_scan.backward(p, states, out, (True,) * 8)
    assert states.shape == triton_scan.states_shape(p)
    assert all(x.shape == y.shape for x, y in zip(grads, p.tensors))
    return sum(float(x.abs().sum()) for x in (last, *grads))


def interpret():
    """Run in the process that interprets the kernels."""
    results = {name: run_case(case) for name, case in CASES.items()}
    results['not finite'] = {
        f'{name} = {value}': not_finite(name, float(value))
        for name, value in (('u', 'nan'), ('B', 'inf'), ('z', '-inf'))
    }
    triton_scan.FURTHEST = 0  # offsets do not fit in 32 bits
    results['wide'] = run_case(CASES['four directions, merged'])
    results['empty'] = [empty(L=0, K=2), empty(batch=0)]
    print('RESULTS', json.dumps(results))


@pytest.fixture(scope='module')
def interpreted():
    """Results of interpret(), from a process of its own."""
    pytest.importorskip('triton', minversion='3.3')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', __file__],
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


@pytest.mark.parametrize('name', [*CASES, 'wide'])
def test_interpreted_kernels(interpreted, name):
    low = CASES.get(name, {}).get('dtype')
    for what, error in interpreted[name].items():
        wide = what in ('last_state', 'A', 'D', 'delta_bias')
        assert error <= (2e-2 if low and not wide else 1e-5), what


def test_nan_and_infinity_go_where_they_should(interpreted):
    assert not any(interpreted['not finite'].values()), interpreted


def test_nothing_to_scan(interpreted):
    assert interpreted['empty'] == [0, 0]


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

    from transmamba_mm.ops.backends import triton_kernels

    active = '_active' if hasattr(driver, '_active') else 'active'
    monkeypatch.setattr(driver, active, NoDevice(capability))
    kernel = getattr(triton_kernels, launch.kernel).warmup(
        **launch.arguments, num_warps=launch.num_warps, grid=(launch.programs,)
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
    forward = triton_scan.plan_forward(p, out, last, states)
    backward = triton_scan.plan_backward(p, states, out, [True] * 8)
    reports = {}
    for launch in (forward, backward):
        ptx = compiled(launch, capability, monkeypatch)
        steps = launch.arguments['CH']
        shuffles = ptx.count('shfl.sync') / steps
        reports[launch.kernel] = (shuffles, *ptxas(ptx, tmp_path))
    shuffles, _, spilled = reports['scan_forward']
    assert (shuffles, spilled) == (0, 0)
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
    for launch in (
        triton_scan.plan_forward(p, p.new_out(), last, None),
        triton_scan.plan_backward(p, states, p.new_out(), needs),
    ):
        assert compiled(launch, 90, monkeypatch)


def test_sizes_of_tiles():
    for N in (1, 2, 3, 4, 5, 8, 16, 17, 64, 256):
        for channels in (1, 11, 16, 24, 384):
            t = triton_scan.tiling(N, channels, 10**6)
            assert t.BN >= N and t.BN & (t.BN - 1) == 0
            assert 512 * t.num_warps >= t.BN * t.BD
            assert 16 <= t.BD <= max(16, 2 * channels)
    assert triton_scan.tiling(16, 384, 1) == (16, 32, 4, 2, 1)
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


# Sizes that fill a GPU, and every branch of the kernels.
GPU_CASES = {
    'vim': dict(batch=4, L=197, D=384, N=16, K=2, reverse=(0, 1), merge=True),
    'vmamba': dict(
        batch=2,
        L=196,
        D=96,
        N=1,
        K=4,
        shared=('u', 'z'),
        order=True,
        reverse=(0, 1, 0, 1),
        merge=True,
    ),
    'plainmamba': dict(
        batch=2,
        L=64,
        D=160,
        N=16,
        K=4,
        shared=ALL_SHARED,
        order=True,
        by_step=True,
        merge=True,
    ),
    'long': dict(L=1031, D=40, N=16),
    'groups': dict(batch=2, L=65, D=144, N=4, G=3, channels_first=True),
    'odd': dict(L=63, D=77, N=5, without=('z',)),
    'bare': dict(
        L=50, D=64, N=8, without=('D', 'z', 'delta_bias'), softplus=False
    ),
    'many states': dict(L=37, D=50, N=64),
    'more states': dict(L=20, D=20, N=200, spread=True),
    'wide N = 1': dict(batch=16, L=33, D=512, N=1, K=8),
    'part of the gradients': dict(
        L=30, D=64, N=16, needs=(0, 1, 0, 1, 0, 0, 1, 0)
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('name', GPU_CASES)
def test_on_gpu(name, dtype):
    case = dict(GPU_CASES[name], dtype=dtype, device='cuda')
    for what, error in run_case(case).items():
        wide = what in ('last_state', 'A', 'D', 'delta_bias')
        low = dtype != 'float32' and not wide
        assert error <= (2e-2 if low else 2e-5), what


@pytest.mark.gpu
@pytest.mark.parametrize('name', CASES)
def test_small_cases_on_gpu(name):
    case = dict(CASES[name], device='cuda')
    low = case.get('dtype')
    for what, error in run_case(case).items():
        assert error <= (2e-2 if low else 2e-5), what


@pytest.mark.gpu
def test_results_do_not_change_on_gpu():
    p = problem(batch=8, L=300, D=256, N=16, K=2, merge=True, device='cuda')
    needs = (True,) * 8
    runs = []
    for _ in range(3):
        out, last, states = triton_scan.forward(p, keep=True)
        runs.append((out, last, *triton_scan.backward(p, states, out, needs)))
    for run in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(run, runs[0]))


@pytest.mark.gpu
@pytest.mark.parametrize('K', [1, 3])
def test_public_operators_on_gpu(K):
    """Same as the reference backend in float64 on the CPU."""
    from transmamba_mm.ops import multi_scan, selective_scan

    many = (K,) if K > 1 else ()
    shapes = dict(
        u=(2, 48, 35),
        delta=(2, *many, 48, 35),
        A=(*many, 48, 16),
        B=(2, K, 16, 35),
        C=(2, K, 16, 35),
        D=(*many, 48),
        z=(2, 48, 35),
        delta_bias=(*many, 48),
    )
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs['A'] = -inputs['A'].abs()
    grad = torch.randn(2, 48, 35)
    results = {}
    for backend, device, dtype in (
        ('triton', 'cuda', torch.float32),
        ('reference', 'cpu', torch.float64),
    ):
        order = torch.stack([torch.arange(35).roll(k + 1) for k in range(K)])
        order = order.to(device)
        tensors = {
            name: x.to(device, dtype).requires_grad_()
            for name, x in inputs.items()
        }
        settings = dict(delta_softplus=True, backend=backend)
        if K > 1:
            out = multi_scan(**tensors, orders=order, **settings)
        else:
            out = selective_scan(**tensors, order=order[0], **settings)
        out.backward(grad.to(device, dtype))
        results[backend] = [out] + [x.grad for x in tensors.values()]
    for x, y in zip(results['triton'], results['reference']):
        error = (x.double().cpu() - y).abs().max() / y.abs().max()
        assert error <= 2e-5


if __name__ == '__main__':
    interpret()
