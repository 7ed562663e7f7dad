# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Rotary positions, against rotations of complex numbers."""

import math

import pytest
import torch

from transmamba_mm.models.layers import RotaryPositions

# Angles of some radians in float32.
CLOSE = dict(rtol=1e-5, atol=1e-5)


def rotated(tokens, grid, span):
    """Patch by patch and pair by pair, in complex numbers."""
    h, w = grid
    dims = tokens.shape[-1]
    out = tokens.double().clone()
    for patch in range(h * w):
        places = (patch // w / h * span, patch % w / w * span)
        for half, place in enumerate(places):
            for j in range(dims // 4):
                angle = place * 10000 ** (-2 * j / (dims / 2))
                c = half * dims // 2 + 2 * j
                pair = torch.complex(out[:, patch, c], out[:, patch, c + 1])
                turn = complex(math.cos(angle), math.sin(angle))
                out[:, patch, c] = (pair * turn).real
                out[:, patch, c + 1] = (pair * turn).imag
    return out.float()


@pytest.mark.parametrize('built', [(3, 3), (2, 5), (4, 1)])
@pytest.mark.parametrize('grid', [(3, 3), (2, 5), (1, 4)])
def test_rotates_pairs_of_channels_by_row_and_column(built, grid):
    rope = RotaryPositions(8, built, span=6)
    x = torch.randn(2, math.prod(grid), 8)
    torch.testing.assert_close(rope(x, grid), rotated(x, grid, 6), **CLOSE)


@pytest.mark.parametrize('extra', [1, 2])
def test_tokens_in_front_stay(extra):
    rope = RotaryPositions(8, (2, 3))
    x = torch.randn(2, 6 + extra, 8)
    out = rope(x, (2, 3))
    assert out[:, :extra].equal(x[:, :extra])
    assert out[:, extra:].equal(rope(x[:, extra:], (2, 3)))


def test_keeps_lengths_and_is_linear():
    rope = RotaryPositions(12, (4, 4)).double()
    a, b = torch.randn(2, 1, 16, 12).double()
    out = rope(a, (4, 4))
    torch.testing.assert_close(out.norm(dim=-1), a.norm(dim=-1))
    torch.testing.assert_close(
        rope(a + 2 * b, (4, 4)), out + 2 * rope(b, (4, 4))
    )


def test_span_is_what_a_finer_grid_shares():
    """Half as far apart, patches of twice as fine a grid turn half as far."""
    coarse, fine = (
        RotaryPositions(8, grid, span=14).freqs_cos.view(*grid, 8)
        for grid in ((3, 2), (6, 4))
    )
    torch.testing.assert_close(fine[::2, ::2], coarse)


def test_tables_are_in_the_state_dict_and_of_the_own_grid():
    small, large = (RotaryPositions(8, grid) for grid in ((2, 2), (3, 4)))
    assert {k: tuple(v.shape) for k, v in small.state_dict().items()} == {
        'freqs_cos': (4, 8),
        'freqs_sin': (4, 8),
    }
    own = large.freqs_sin.clone()
    large.load_state_dict(small.state_dict(), strict=True)
    assert large.freqs_sin.equal(own)
    stored = {k: v + 1 for k, v in small.state_dict().items()}
    small.load_state_dict(stored)
    assert small.freqs_cos.equal(stored['freqs_cos'])


def test_width_must_hold_pairs():
    with pytest.raises(ValueError, match='a multiple of 4, got 10'):
        RotaryPositions(10, (2, 2))
