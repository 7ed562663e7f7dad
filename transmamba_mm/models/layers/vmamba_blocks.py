# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The parts of VMamba around its mixer: stems, downsampling, blocks.

Paper: VMamba (arXiv 2401.10166). Parameters have the names of the released
checkpoints, hence the numbered modules. All take and return tokens
(B, h*w, C) in raster order with their grid (h, w), except the stems, which
take images.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Union

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from transmamba_mm.checks import (
    check_images,
    check_int,
    check_pair,
    check_width,
)
from transmamba_mm.contract import MixerBlock
from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops import with_fast_linears

from .cross_scan_mixer import CrossScanMixer


def _to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, h*w, C) as a map (B, C, h, w), without a copy."""
    return tokens.mT.unflatten(2, grid)


def _to_tokens(maps: Tensor) -> tuple[Tensor, Grid]:
    """A map (B, C, h, w) as tokens (B, h*w, C), and its grid."""
    return maps.flatten(2).mT, tuple(maps.shape[2:])


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises each place of the map."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class VMambaStem(nn.Sequential):
    """Patches from images.

    ``'v1'`` is one convolution without overlap, ``'v2'`` two overlapping
    ones with a GELU between, each of half the patch size in stride; LayerNorm
    follows each. As in the original, 4 is the patch size for which the strides
    multiply to it.

    Attributes:
        init_out_size (tuple[int, int]): Grid of an image of ``input_size``.

    Args:
        in_channels (int): Image channels.
        embed_dims (int): Token width.
        patch_size (int): Side of a patch in pixels.
        version (str): ``'v1'`` or ``'v2'``.
        input_size (int | tuple[int, int]): Image (H, W) for which
            ``init_out_size`` is computed.

    Raises:
        ValueError: If ``version`` or ``patch_size`` is not supported, or an
            image is smaller than a patch.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int,
        version: str,
        input_size: Union[int, tuple[int, int]],
    ) -> None:
        in_channels = check_int('in_channels', in_channels)
        patch_size = check_int('patch_size', patch_size)
        size = check_pair('img_size', input_size)
        modules = OrderedDict()
        if version == 'v1':
            modules['0'] = nn.Conv2d(
                in_channels, embed_dims, patch_size, patch_size
            )
            modules['2'] = MapNorm(embed_dims)
        elif version == 'v2':
            if patch_size < 4 or patch_size % 2:
                raise ValueError(
                    f"patch_embed='v2' halves the patch first, so patch_size "
                    f'must be even and at least 4, got {patch_size}; use '
                    f"patch_embed='v1' for others"
                )
            half = patch_size // 2
            middle = check_int('embed_dims', embed_dims, 2) // 2
            kwargs = dict(kernel_size=half + 1, stride=half, padding=1)
            modules['0'] = nn.Conv2d(in_channels, middle, **kwargs)
            modules['2'] = MapNorm(middle)
            modules['4'] = nn.GELU()
            modules['5'] = nn.Conv2d(middle, embed_dims, **kwargs)
            modules['7'] = MapNorm(embed_dims)
        else:
            raise ValueError(
                f"patch_embed must be 'v1' or 'v2', got {version!r}"
            )
        super().__init__(modules)
        self.init_out_size = self._out_size(size, 'img_size')

    def _out_size(
        self, size: Sequence[int], name: str = 'an image of'
    ) -> tuple[int, int]:
        """The grid of an image of this size."""
        grid = tuple(size)
        for module in self:
            if isinstance(module, nn.Conv2d):
                grid = tuple(
                    (side + 2 * module.padding[0] - module.kernel_size[0])
                    // module.stride[0]
                    + 1
                    for side in grid
                )
            if min(grid) < 1:
                raise ValueError(
                    f'{name} {size[0]}x{size[1]} is smaller than a patch: '
                    f'use larger images or a smaller patch_size'
                )
        return grid

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Embeds images.

        Args:
            x (Tensor): Images (B, C, H, W).

        Returns:
            tuple: Tokens (B, h*w, embed_dims) in raster order, and (h, w).
        """
        check_images(x)
        self._out_size(x.shape[2:])
        return _to_tokens(super().forward(x))


class NoDownsample(nn.Module):
    """Stands after the last stage."""

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Returns its inputs."""
        return x, grid


class ConvDownsample(nn.Sequential):
    """A 3x3 convolution of stride 2 and a norm (``'v3'``).

    Args:
        in_dims (int): Token width before.
        out_dims (int): Token width after.
    """

    def __init__(self, in_dims: int, out_dims: int) -> None:
        conv = nn.Conv2d(in_dims, out_dims, 3, stride=2, padding=1)
        super().__init__(OrderedDict({'1': conv, '3': MapNorm(out_dims)}))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Maps tokens (B, h*w, C) to a grid of half the size."""
        return _to_tokens(super().forward(_to_map(x, grid)))


class MergeDownsample(nn.Module):
    """Joins each 2x2 tokens into one (``'v1'``).

    An odd grid gets a row of zeros below or a column on the right.

    Args:
        in_dims (int): Token width before.
        out_dims (int): Token width after.
    """

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * in_dims, out_dims, bias=False)
        self.norm = nn.LayerNorm(4 * in_dims)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Maps tokens (B, h*w, C) to a grid of half the size."""
        h, w = grid
        x = F.pad(x.unflatten(1, grid), (0, 0, 0, w % 2, 0, h % 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = torch.cat(corners, dim=-1)
        grid = tuple(x.shape[1:3])
        x = self.norm(x.flatten(1, 2))
        return with_fast_linears(self.reduction, x), grid


def build_downsample(version: str, in_dims: int, out_dims: int) -> nn.Module:
    """Builds what stands between two stages.

    Args:
        version (str): ``'v1'`` or ``'v3'``.
        in_dims (int): Token width before.
        out_dims (int): Token width after.

    Returns:
        nn.Module: Maps tokens and their grid to others.

    Raises:
        ValueError: If there is no such version.
    """
    kinds = dict(v1=MergeDownsample, v3=ConvDownsample)
    if version not in kinds:
        raise ValueError(
            f'downsample must be one of {", ".join(kinds)}, got {version!r}'
        )
    return kinds[version](in_dims, out_dims)


class VMambaMlp(nn.Module):
    """Two Linears with a GELU between.

    Args:
        embed_dims (int): Token width.
        hidden_dims (int): Width between the Linears.
        drop_rate (float): Dropout after the GELU and at the end.
    """

    def __init__(
        self, embed_dims: int, hidden_dims: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (B, L, C) to the same shape."""
        x = self.drop(self.act(with_fast_linears(self.fc1, x)))
        return self.drop(with_fast_linears(self.fc2, x))


class VMambaBlock(MixerBlock, BaseModule):
    """A residual mixer and an optional residual MLP.

    Args:
        embed_dims (int): Token width.
        directions (Sequence[str]): Registered scan orders.
        mixer_cfg (dict): Further arguments of :class:`CrossScanMixer`.
        mlp_ratio (float): MLP width over ``embed_dims``; 0 for none.
        drop_rate (float): Dropout after the mixer and in the MLP.
        drop_path_rate (float): Stochastic depth rate of both branches.
    """

    MIXER = 'op'

    def __init__(
        self,
        embed_dims: int,
        directions: Sequence[str],
        mixer_cfg: dict,
        mlp_ratio: float,
        drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dims)
        self.op = CrossScanMixer(embed_dims, directions, **mixer_cfg)
        self.drop = nn.Dropout(drop_rate)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = self.mlp = None
        if mlp_ratio:
            self.norm2 = nn.LayerNorm(embed_dims)
            self.mlp = VMambaMlp(
                embed_dims,
                check_width('mlp_ratio', mlp_ratio, embed_dims, ', or 0'),
                drop_rate,
            )

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Maps raster tokens (B, h*w, C) to the same shape."""
        x = x + self.drop_path(self.drop(self.op(self.norm(x), grid)))
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
