# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The convolution's Triton kernels, without a GPU and on one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conv_cases import CASES, by_public_function, errors, limit, problem
from triton_offline import compiled, interpreted, ptxas

from transmamba_mm.ops import causal_conv, causal_conv1d_silu, triton_launch


@pytest.fixture(scope='module')
def results():
    return interpreted(Path(__file__).with_name('conv_cases.py'))


@pytest.mark.parametrize('name', [*CASES, 'long programs'])
def test_interpreted_kernels(results, name):
    case = CASES.get(name, {})
    for what, error in results[name].items():
        assert error <= limit(what, **case), what


def test_nan_and_infinity_go_where_they_should(results):
    assert results['not finite'] == [[True, True], [True, True]]


def test_no_tokens(results):
    assert results['empty'] == [0, 0]


def launches(**case):
    from transmamba_mm.ops import causal_conv_triton

    reverse = case.pop('reverse')
    x, weight, bias, grad = problem(reverse=reverse, **case)
    out = causal_conv._new_out(x, weight)
    return (
        causal_conv_triton.plan_forward(x, weight, bias, reverse, out),
        causal_conv_triton.plan_backward(
            grad, x, weight, bias, reverse, torch.empty_like(x)
        ),
    )


@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('K', [1, 2, 4])
def test_compiled_kernels(K, dtype, capability, monkeypatch, tmp_path):
    """All is in registers, and threads exchange nothing along the walk."""
    pytest.importorskip('triton', minversion='3.3')
    reverse = [k % 2 for k in range(K)]
    for launch in launches(
        length=197,
        channels=384,
        reverse=reverse,
        dtype=dtype,
        strides='sliced',
    ):
        ptx = compiled(launch, capability, monkeypatch, tmp_path)
        assert ptxas(ptx, tmp_path)[1] == 0
        # Outside of the loop, the weights may have to be spread otherwise.
        assert ptx.count('bar.sync') < 8
        assert ptx.count('shfl.sync') <= 32


@pytest.mark.parametrize(
    'case',
    [
        dict(reverse=[0], width=2, channels=1, bias=False),
        dict(reverse=[1, 1, 0], width=3, dtype='float16'),
        dict(reverse=[0, 1], strides='channels first', grad='expanded'),
    ],
)
def test_other_kernels_compile(case, monkeypatch, tmp_path):
    pytest.importorskip('triton', minversion='3.3')
    for launch in launches(**case):
        ptx = compiled(launch, 90, monkeypatch, tmp_path)
        assert ptxas(ptx, tmp_path)[1] == 0


@pytest.mark.parametrize('overlap', [0, 3])
def test_parts_cover_the_walk(overlap):
    pytest.importorskip('triton', minversion='3.3')
    from transmamba_mm.ops.causal_conv_triton import BD, LONGEST, tiling

    for K in (1, 2, 4):
        for length in (1, 5, 8, 13, 61, 197, 784, 5000):
            for batch in (1, 8, 128, 4000):
                t = tiling(batch, length, 384, K, overlap)
                own = t.chunks * t.CH - overlap
                assert own * (t.parts - 1) < length <= own * t.parts
                assert 0 < t.chunks <= LONGEST and t.blocks * BD == 384


def test_when_the_kernels_serve(monkeypatch):
    monkeypatch.setattr(triton_launch, 'serves', lambda index: True)

    def served(*shape, dtype=torch.float32, weight_dtype=torch.float32):
        x = SimpleNamespace(dtype=dtype, device=torch.device('cuda:0'))
        weight = torch.empty(shape, dtype=weight_dtype)
        return causal_conv._has_kernel(x, weight, None)

    assert served(8, 4) and served(4, 8, 2)
    assert served(8, 4, dtype=torch.bfloat16)
    assert not served(5, 8, 4)
    assert not served(8, 5)
    assert not served(8, 4, dtype=torch.float64)
    assert not served(8, 4, weight_dtype=torch.float64)
    monkeypatch.setattr(triton_launch, 'serves', lambda index: False)
    assert not served(8, 4)


# --------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('name', CASES)
def test_on_gpu(name, dtype):
    case = dict(CASES[name], dtype=dtype, device='cuda')
    for what, error in errors(by_public_function, **case).items():
        assert error <= 2 * limit(what, **case), what


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('K', [1, 2, 4, 5])
def test_vim_on_gpu(K, dtype):
    case = dict(batch=8, length=197, channels=384, strides='sliced')
    case.update(reverse=[k % 2 for k in range(K)], dtype=dtype, device='cuda')
    # Five directions are left to PyTorch, in the dtype of x.
    factor = 10 if K == 5 else 2
    for what, error in errors(by_public_function, **case).items():
        low = dict(case, weight_dtype=dtype) if K == 5 else case
        assert error <= factor * limit(what, **low), what


@pytest.mark.gpu
def test_results_do_not_change_on_gpu():
    reverse = [0, 1]
    case = problem(64, 197, 384, reverse=reverse, device='cuda')
    x, weight, bias, grad = case
    first = by_public_function(x, weight, bias, reverse, grad)
    for _ in range(3):
        again = by_public_function(x, weight, bias, reverse, grad)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.gpu
def test_autocast_and_compile_on_gpu():
    x, weight, bias, _ = problem(reverse=(0, 1), device='cuda')
    project = torch.nn.Linear(20, 20, device='cuda')

    def run(x):
        y = project(x)
        return causal_conv1d_silu(y, weight, bias, [False, True])

    torch.library.opcheck(
        torch.ops.transmamba_mm.causal_conv1d_silu.default,
        (x, weight.requires_grad_(), bias, [0, 1]),
    )
    with torch.autocast('cuda', torch.bfloat16):
        want = run(x)
        got = torch.compile(run, backend='aot_eager', fullgraph=True)(x)
    assert want.dtype == torch.bfloat16
    assert torch.equal(got, want) and got.stride() == want.stride()
