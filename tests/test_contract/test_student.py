# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Blocks whose mixers may run alone."""

import pytest
import torch
from torch import nn

from transmamba_mm.contract import MambaStudent, MixerBlock


class Mixer(nn.Linear):
    """Adds the grid's length; its directions are two halves of that."""

    def forward(self, x, grid):
        return super().forward(x) + grid[0]

    def by_direction(self, x, grid):
        half = self(x, grid) / 2
        return torch.stack([half, half], dim=1)


class Block(MixerBlock, nn.Module):
    MIXER = 'own'

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.own = Mixer(4, 4)


class Student(MambaStudent):
    layer_dims = (4, 4)

    def __init__(self, block):
        self._blocks = [block(), block()]

    def blocks(self):
        return self._blocks


def test_a_mixer_runs_alone_after_its_norm():
    student = Student(Block)
    block = student.blocks()[1]
    stream = torch.randn(2, 3, 4)
    wanted = block.own(block.norm(stream), (3,))
    assert student.mixers()[1] is block.own
    assert student.mix(1, stream, (3,)).equal(wanted)
    # A stream may be wider than the weights.
    assert student.mix(1, stream.double(), (3,)).equal(wanted)
    apart = student.mix_apart(1, stream, (3,))
    torch.testing.assert_close(apart.sum(1), wanted)


def test_another_block_is_named():
    with pytest.raises(
        TypeError, match=r'Linear of Student must have .*Mixer'
    ):
        Student(lambda: nn.Linear(4, 4)).mixers()
