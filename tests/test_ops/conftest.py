# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Fixtures of the operators' tests."""

import pytest

from transmamba_mm.ops.native import library


@pytest.fixture(params=['avx512', 'avx2'])
def isa(request):
    """Run with one of the instruction sets that this processor has."""
    if library.unavailable() is not None:
        pytest.skip('the CPU kernels are missing')
    kernels, best = library.load(), library.isa()
    if not kernels.tm_select_isa(request.param.encode()):
        kernels.tm_select_isa(best.encode())
        pytest.skip(f'this processor does not have {request.param}')
    yield request.param
    kernels.tm_select_isa(best.encode())
