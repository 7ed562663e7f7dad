# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What flows from the student's taps to the loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.ops import invert_order, reorder

Grid = tuple[int, ...]


@dataclass(frozen=True)
class TapRecord:
    """Patch tokens of one layer and one scan direction.

    Attributes:
        layer (int): Index of the mixer, in depth order.
        direction (str): Name of the scan direction.
        tokens (Tensor): (B, L, C), in the direction's scan order, without
            class tokens.
        grid (tuple[int, ...]): Patch grid with product L.
        scan_order (Callable): ``grid -> LongTensor (L,)``, this direction's
            order on any grid.
    """

    layer: int
    direction: str
    tokens: Tensor
    grid: Grid
    scan_order: Callable[..., Tensor]

    def order(self) -> Tensor:
        """LongTensor (L,): the raster patch visited at each step."""
        return self.scan_order(*self.grid).to(self.tokens.device)

    def with_tokens(self, tokens: Tensor) -> 'TapRecord':
        """The same place, other features."""
        return replace(self, tokens=tokens)

    def resized(self, grid: Grid) -> 'TapRecord':
        """Interpolates the tokens to another grid, linearly in each axis.

        Args:
            grid (tuple[int, ...]): Target grid, (h, w) or (t, h, w).

        Returns:
            TapRecord: Tokens in this direction's scan order on ``grid``.
        """
        if tuple(grid) == tuple(self.grid):
            return self
        raster = reorder(self.tokens, invert_order(self.order()))
        maps = raster.mT.unflatten(2, self.grid)
        mode = {2: 'bilinear', 3: 'trilinear'}[len(grid)]
        maps = F.interpolate(maps, size=tuple(grid), mode=mode)
        target = replace(self, grid=tuple(grid))
        order = target.order()
        return target.with_tokens(reorder(maps.flatten(2).mT, order))
