# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Whether Triton runs."""

import pytest
import torch

from transmamba_mm.ops import triton_launch


@pytest.fixture
def fresh():
    triton_launch._serves.cache_clear()
    yield
    triton_launch._serves.cache_clear()


def test_what_serves(monkeypatch, fresh):
    monkeypatch.setattr(triton_launch, 'probe', lambda: None)
    capabilities = {0: (9, 0), 1: (7, 5), None: (8, 0)}
    monkeypatch.setattr(
        torch.cuda, 'get_device_capability', capabilities.__getitem__
    )
    assert triton_launch.serves(0) and triton_launch.serves(None)
    assert not triton_launch.serves(1)
    triton_launch._serves.cache_clear()
    monkeypatch.setattr(triton_launch, 'probe', lambda: 'no Triton')
    assert not triton_launch.serves(0)


def test_compiler_asks_without_tracing(monkeypatch, fresh):
    monkeypatch.setattr(triton_launch, 'probe', lambda: 'no Triton')

    @torch.compile(backend='eager', fullgraph=True)
    def run(x):
        return x + 1 if triton_launch.serves(x.device.index) else x - 1

    assert run(torch.zeros(2)).tolist() == [-1, -1]


def test_powers_of_2():
    found = [triton_launch.power_of_2(x) for x in (1, 2, 3, 4, 5, 192)]
    assert found == [1, 2, 4, 4, 8, 256]
