# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The Triton kernels of RMS normalisation, without a GPU and on one."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from norm_cases import CASES, by_public_function, errors, limit, problem
from triton_offline import compiled, interpreted, ptxas

from transmamba_mm.ops import rms_norm, triton_launch


@pytest.fixture(scope='module')
def results():
    return interpreted(Path(__file__).with_name('norm_cases.py'))


@pytest.mark.parametrize('name', [*CASES, 'several tiles a program'])
def test_interpreted_kernels(results, name):
    case = CASES.get(name, {})
    for what, error in results[name].items():
        assert error <= limit(what, **case), what


def test_no_rows(results):
    assert results['empty'] == 0


@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('D', [5, 192, 8192])
def test_compiled_kernels(D, dtype, capability, monkeypatch, tmp_path):
    pytest.importorskip('triton', minversion='3.3')
    from transmamba_mm.ops import rms_norm_triton

    x, weight, grad = problem((64, D), dtype=dtype)
    rstd = torch.empty(64)
    for launch in (
        rms_norm_triton.plan_forward(x, weight, 1e-5, x, rstd),
        rms_norm_triton.plan_backward(grad, x, weight, rstd, x),
    ):
        ptx = compiled(launch, capability, monkeypatch, tmp_path)
        assert ptxas(ptx, tmp_path)[1] == 0


def test_when_the_kernels_serve(monkeypatch):
    # The function of the same name hides it in the package.
    module = import_module('transmamba_mm.ops.rms_norm')
    monkeypatch.setattr(triton_launch, 'serves', lambda index: True)

    def served(D, dtype=torch.float32, weight_dtype=torch.float32):
        device = torch.device('cuda:0')
        x = SimpleNamespace(dtype=dtype, device=device)
        weight = SimpleNamespace(dtype=weight_dtype, device=device, shape=(D,))
        return module._has_kernel(x, weight)

    assert served(8) and served(8192, torch.bfloat16)
    assert not served(8193)
    assert not served(8, torch.float64)
    assert not served(8, weight_dtype=torch.float64)
    monkeypatch.setattr(triton_launch, 'serves', lambda index: False)
    assert not served(8)


# --------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('name', [*CASES, 'vim'])
def test_on_gpu(name, dtype):
    case = CASES.get(name, dict(shape=(32, 197, 192)))
    case = dict(case, dtype=dtype, device='cuda')
    for what, error in errors(by_public_function, **case).items():
        assert error <= 2 * limit(what, **case), what


@pytest.mark.gpu
def test_wider_rows_on_gpu():
    found = errors(by_public_function, shape=(3, 8200), device='cuda')
    assert max(found.values()) < 1e-5


@pytest.mark.gpu
def test_results_do_not_change_on_gpu():
    tensors = problem((64, 197, 192), device='cuda')
    first = by_public_function(*tensors)
    for _ in range(3):
        again = by_public_function(*tensors)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.gpu
def test_operator_and_compile_on_gpu():
    x, weight, _ = problem((3, 9, 48), dtype='bfloat16', device='cuda')
    torch.library.opcheck(
        torch.ops.transmamba_mm.rms_norm.default,
        (x, weight.requires_grad_(), 1e-5),
    )
    run = torch.compile(rms_norm, backend='aot_eager', fullgraph=True)
    assert torch.equal(run(x, weight), rms_norm(x, weight))
