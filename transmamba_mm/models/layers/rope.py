# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Rotary positions of Vim: pairs of channels turn by row and column.

Source: Vim (arXiv 2401.09417), which took them from EVA-02 (arXiv
2303.11331).
"""

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops.caching import cached_tensors


def _turn_pairs(x: Tensor) -> Tensor:
    """Turns each pair of channels (a, b) by 90 degrees, to (-b, a)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-b, a), dim=-1).flatten(-2)


@cached_tensors(maxsize=64)
def _rotations(
    embed_dims: int, span: float, grid: Grid, device: str
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (h*w, C) for a grid in raster order."""
    half = embed_dims // 2
    powers = torch.arange(0, half, 2, device=device).float() / half
    speeds = (1.0 / 10000**powers).repeat_interleave(2)
    rows, columns = (
        (torch.arange(side, device=device) / side * span)[:, None] * speeds
        for side in grid
    )
    h, w = grid
    angles = torch.cat(
        (
            rows[:, None].expand(-1, w, -1),
            columns[None].expand(h, -1, -1),
        ),
        dim=-1,
    ).flatten(0, 1)
    return angles.cos(), angles.sin()


class RotaryPositions(nn.Module):
    """Rotates tokens by angles that grow with their row and column.

    The first half of the channels turns by the row, the second by the
    column; pair ``j`` of ``C / 4`` in a half turns by
    ``10000 ** (-4 j / C)`` per position. The tables of the grid it is made
    for are buffers, as in the official state dicts; those of other grids are
    computed when needed, and a checkpoint's of another grid are not loaded.

    As in the original, the rows of the table go to the last tokens of the
    sequence: what precedes them stays as it is. With a class token in the
    middle these are not its patches only: the first patch stays, and the
    class token turns.

    Args:
        embed_dims (int): Token width C, a multiple of four.
        grid (tuple[int, int]): Patch grid (h, w).
        span (float): Positions along each side, whatever ``grid`` is, so
            that a finer grid has smaller steps. Defaults to 14.

    Raises:
        ValueError: If ``embed_dims`` is not a multiple of four.
    """

    def __init__(self, embed_dims: int, grid: Grid, span: float = 14) -> None:
        super().__init__()
        if embed_dims % 4:
            raise ValueError(
                f'rotary positions turn pairs of channels by row and by '
                f'column, so embed_dims must be a multiple of 4, got '
                f'{embed_dims}'
            )
        self.embed_dims = embed_dims
        self.grid = tuple(grid)
        self.span = span
        device = str(torch.empty(0).device)  # that of `torch.device`
        cos, sin = _rotations(embed_dims, span, self.grid, device)
        self.register_buffer('freqs_cos', cos.clone())
        self.register_buffer('freqs_sin', sin.clone())
        self._register_load_state_dict_pre_hook(self.keep_own_tables)

    def keep_own_tables(self, state_dict: dict, prefix: str, *args) -> None:
        """Replaces a checkpoint's tables that are of another grid."""
        for name in ('freqs_cos', 'freqs_sin'):
            own, loaded = getattr(self, name), state_dict.get(prefix + name)
            if loaded is not None and loaded.shape != own.shape:
                print_log(
                    f'keep {prefix}{name} of the grid '
                    f'{"x".join(map(str, self.grid))}',
                    logger='current',
                )
                state_dict[prefix + name] = own

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Rotates the last ``h * w`` tokens of (B, L, C)."""
        if tuple(grid) == self.grid:
            cos, sin = self.freqs_cos, self.freqs_sin
        else:
            cos, sin = _rotations(
                self.embed_dims, self.span, tuple(grid), str(x.device)
            )
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        still = x.shape[1] - len(cos)
        kept, turned = x[:, :still], x[:, still:]
        turned = turned * cos + _turn_pairs(turned) * sin
        return torch.cat((kept, turned), dim=1)
