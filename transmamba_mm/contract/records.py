# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What flows from the sites of a pair to the losses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.ops import invert_order, reorder

Grid = tuple[int, ...]


def _interpolated(raster: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Raster tokens (B, L, C) on another grid, linearly in each axis."""
    if len(grid) == 1:
        raise ValueError(
            f'{grid[0]} tokens of sequences are compared with {target[0]}: '
            f'student and teacher must read the same tokens, with the same '
            f'attention_mask'
        )
    mode = {2: 'bilinear', 3: 'trilinear'}[len(target)]
    maps = F.interpolate(raster.mT.unflatten(2, grid), target, mode=mode)
    return maps.flatten(2).mT


@dataclass(frozen=True)
class TokenRecord:
    """Tokens of one layer, in raster order.

    Attributes:
        layer (int): Index of the layer, in depth order.
        tokens (Tensor): Patch tokens (B, L, C).
        grid (tuple[int, ...]): Patch grid with product L.
        classes (Tensor): Class and similar tokens (B, n, C), n maybe 0.
        valid (Tensor, optional): Of sequences of which padding was left out:
            bool (B, L), where the tokens stood. They are one row (1, M, C)
            and the grid is (M,), so that what averages over tokens need not
            know. Defaults to None: nothing was left out.
    """

    layer: int
    tokens: Tensor
    grid: Grid
    classes: Tensor
    valid: Optional[Tensor] = None

    def without_padding(self, valid: Optional[Tensor]) -> 'TokenRecord':
        """Leaves out the tokens that ``valid`` (B, L) is False of, if any."""
        if valid is None or bool(valid.all()):
            return self
        tokens = self.tokens[valid].unsqueeze(0)
        grid, classes = tokens.shape[1:2], self.classes[:1]
        return TokenRecord(self.layer, tokens, tuple(grid), classes, valid)

    def in_sequences(self) -> Tensor:
        """Tokens (B, L, C), zero where padding was left out."""
        if self.valid is None:
            return self.tokens
        tokens = self.tokens.new_zeros(*self.valid.shape, self.tokens.shape[2])
        tokens[self.valid] = self.tokens[0]
        return tokens

    def with_tokens(self, tokens: Tensor) -> 'TokenRecord':
        """The same place, other patch tokens."""
        return replace(self, tokens=tokens)

    def resized(self, grid: Grid) -> 'TokenRecord':
        """Interpolates the patch tokens to another grid."""
        if tuple(grid) == tuple(self.grid):
            return self
        tokens = _interpolated(self.tokens, self.grid, tuple(grid))
        return replace(self, tokens=tokens, grid=tuple(grid))


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

    def without_padding(self, valid: Optional[Tensor]) -> 'TapRecord':
        """See :meth:`TokenRecord.without_padding`."""
        if valid is None or bool(valid.all()):
            return self
        tokens = self.tokens[valid].unsqueeze(0)
        return replace(self, tokens=tokens, grid=tuple(tokens.shape[1:2]))

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
        raster = _interpolated(raster, self.grid, tuple(grid))
        target = replace(self, grid=tuple(grid))
        return target.with_tokens(reorder(raster, target.order()))


@dataclass(frozen=True)
class Embeddings:
    """What a batch of texts and of videos becomes in their common space.

    All embeddings have length 1, so a product of two is their cosine.

    Attributes:
        texts (Tensor): (N, D), in training one text for each video.
        videos (Tensor): (B, D).
        frames (Tensor, optional): (B, T, D), those of the frames that a
            video's is pooled from; None where there are none.
        mask (Tensor): Bool (B, T), True for frames that are no padding.
        scale (Tensor): Scalar, the inverse temperature of the cosines.
    """

    texts: Tensor
    videos: Tensor
    frames: Optional[Tensor]
    mask: Tensor
    scale: Tensor

    @property
    def logits(self) -> Tensor:
        """Tensor: Scores (N, B) of each text with each video, float32."""
        return scores(self.texts, self.videos, self.scale)


def scores(texts: Tensor, videos: Tensor, scale: Tensor) -> Tensor:
    """Scaled cosines (N, B) of embeddings (N, D) and (B, D), in float32."""
    # Cosines that are close lose their order in half precision.
    with torch.autocast(texts.device.type, enabled=False):
        return scale.float() * texts.float() @ videos.float().mT
