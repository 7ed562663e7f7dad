# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The patch embeddings of PlainMamba, Vim and VideoMamba."""

import logging
from typing import Union

from mmcv.cnn.bricks.transformer import AdaptivePadding
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from transmamba_mm.checks import check_images, check_int, check_pair


def _conv_bn_relu(in_channels: int, out_channels: int, **kwargs) -> list:
    conv = nn.Conv2d(in_channels, out_channels, bias=False, **kwargs)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


class ConvPatchEmbed(BaseModule):
    """A strided convolution, a few 3x3 ones, then non-overlapping patches.

    Source: PlainMamba (arXiv 2403.17695), ``ConvPatchEmbed``. The grid is
    ``ceil(H/2 / (p/2)) x ceil(W/2 / (p/2))``; what is missing is padded with
    zeros on the right and at the bottom.

    Args:
        in_channels (int): Image channels. Defaults to 3.
        embed_dims (int): Token width. Defaults to 192.
        patch_size (int): Side of a patch in pixels, even. Defaults to 16.
        num_convs (int): 3x3 convolutions after the first one. Defaults to 1.
        mid_channels (int): Channels of the convolutions. Defaults to 64.
        input_size (int | tuple[int, int]): Image (H, W) for which
            ``init_out_size`` is computed. Defaults to 224.

    Raises:
        ValueError: If ``patch_size`` is odd.
    """

    def __init__(
        self,
        in_channels: int = 3,
        embed_dims: int = 192,
        patch_size: int = 16,
        num_convs: int = 1,
        mid_channels: int = 64,
        input_size: Union[int, tuple[int, int]] = 224,
    ) -> None:
        super().__init__()
        if patch_size % 2:
            raise ValueError(
                f'ConvPatchEmbed halves the image first, so patch_size must '
                f"be even, got {patch_size}; use stem='patch' for odd sizes"
            )
        half = patch_size // 2
        self.stem = nn.Sequential(
            *_conv_bn_relu(
                in_channels, mid_channels, kernel_size=7, stride=2, padding=3
            )
        )
        convs = []
        for _ in range(num_convs):
            convs += _conv_bn_relu(
                mid_channels, mid_channels, kernel_size=3, padding=1
            )
        self.convs = nn.Sequential(*convs)
        self.adaptive_padding = AdaptivePadding(
            kernel_size=half, stride=half, padding='corner'
        )
        self.projection = nn.Conv2d(mid_channels, embed_dims, half, half)
        height, width = to_2tuple(input_size)
        # As in the original, ceil(floor(H / 2) / half), although the stem
        # rounds up: positions for odd images may have to be stretched.
        self.init_out_size = (
            max(1, -(-(height // 2) // half)),
            max(1, -(-(width // 2) // half)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embeds images.

        Args:
            x (Tensor): Images (B, C, H, W).

        Returns:
            tuple: Tokens (B, h*w, embed_dims) in raster order, and (h, w).
        """
        x = self.convs(self.stem(x))
        x = self.projection(self.adaptive_padding(x))
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


class OverlapPatchEmbed(BaseModule):
    """One convolution, whose patches may overlap.

    Source: Vim (arXiv 2401.09417), ``PatchEmbed``. The grid is
    ``(H - p) // stride + 1`` times the same of W; as in the original there
    is no padding, so pixels beyond the last whole patch are not seen.

    Args:
        in_channels (int): Image channels. Defaults to 3.
        embed_dims (int): Token width. Defaults to 192.
        patch_size (int | tuple[int, int]): Sides (h, w) of a patch in
            pixels. Defaults to 16.
        stride (int | tuple[int, int]): Pixels between patches. Defaults to
            16.
        input_size (int | tuple[int, int]): Image (H, W) for which
            ``init_out_size`` is computed. Defaults to 224.

    Raises:
        ValueError: If the image is smaller than a patch, or a size less
            than one.
    """

    def __init__(
        self,
        in_channels: int = 3,
        embed_dims: int = 192,
        patch_size: Union[int, tuple[int, int]] = 16,
        stride: Union[int, tuple[int, int]] = 16,
        input_size: Union[int, tuple[int, int]] = 224,
    ) -> None:
        super().__init__()
        self.patch_size = check_pair('patch_size', patch_size)
        stride = check_pair('stride', stride)
        if stride[0] > self.patch_size[0] or stride[1] > self.patch_size[1]:
            print_log(
                f'stride {stride} is larger than patch_size '
                f'{self.patch_size}: the pixels between patches are not seen',
                logger='current',
                level=logging.WARNING,
            )
        in_channels = check_int('in_channels', in_channels)
        self.proj = self._make_proj(in_channels, embed_dims, stride)
        size = check_pair('img_size', input_size)
        self._check_size('img_size', size)
        self.init_out_size = tuple(
            (side - patch) // step + 1
            for side, patch, step in zip(size, self.patch_size, stride)
        )

    def _make_proj(
        self, in_channels: int, embed_dims: int, stride: tuple[int, int]
    ) -> nn.Module:
        return nn.Conv2d(in_channels, embed_dims, self.patch_size, stride)

    def _check_size(self, name: str, size: tuple[int, int]) -> None:
        height, width = self.patch_size
        if len(size) != 2:
            raise ValueError(f'{name} must be (H, W), got {size}')
        if size[0] < height or size[1] < width:
            raise ValueError(
                f'{name} {size[0]}x{size[1]} is smaller than a patch of '
                f'{height}x{width}: use larger images or a smaller patch_size'
            )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embeds images.

        Args:
            x (Tensor): Images (B, C, H, W).

        Returns:
            tuple: Tokens (B, h*w, embed_dims) in raster order, and (h, w).
        """
        check_images(x)
        self._check_size('an image of', tuple(x.shape[2:]))
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


class TubeletPatchEmbed(OverlapPatchEmbed):
    """One convolution over patches of several frames, for videos.

    Source: VideoMamba (arXiv 2403.06977), ``PatchEmbed``. The grid is that
    of :class:`OverlapPatchEmbed` for every ``tubelet_size`` frames; frames
    beyond the last whole tubelet are not seen.

    Args:
        in_channels (int): Channels of a frame. Defaults to 3.
        embed_dims (int): Token width. Defaults to 192.
        patch_size (int | tuple[int, int]): Sides (h, w) of a patch in
            pixels. Defaults to 16.
        stride (int | tuple[int, int]): Pixels between patches. Defaults to
            16.
        input_size (int | tuple[int, int]): Frame (H, W) for which
            ``init_out_size`` is computed. Defaults to 224.
        num_frames (int): Frames for which ``init_steps`` is computed.
            Defaults to 8.
        tubelet_size (int): Frames in a patch, and between patches. Defaults
            to 1.

    Raises:
        ValueError: If the frames are smaller than a patch or fewer than a
            tubelet.
    """

    def __init__(
        self,
        in_channels: int = 3,
        embed_dims: int = 192,
        patch_size: Union[int, tuple[int, int]] = 16,
        stride: Union[int, tuple[int, int]] = 16,
        input_size: Union[int, tuple[int, int]] = 224,
        num_frames: int = 8,
        tubelet_size: int = 1,
    ) -> None:
        # First, as the projection made there needs it.
        self.tubelet_size = check_int('tubelet_size', tubelet_size)
        super().__init__(
            in_channels, embed_dims, patch_size, stride, input_size
        )
        num_frames = check_int('num_frames', num_frames)
        self._check_frames('num_frames of', num_frames)
        self.init_steps = num_frames // self.tubelet_size

    def _make_proj(
        self, in_channels: int, embed_dims: int, stride: tuple[int, int]
    ) -> nn.Module:
        frames = self.tubelet_size
        return nn.Conv3d(
            in_channels,
            embed_dims,
            (frames, *self.patch_size),
            (frames, *stride),
        )

    def _check_frames(self, name: str, frames: int) -> None:
        if frames < self.tubelet_size:
            raise ValueError(
                f'{name} {frames} is less than tubelet_size '
                f'{self.tubelet_size}: use more frames or a smaller '
                f'tubelet_size'
            )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Embeds videos.

        Args:
            x (Tensor): Videos (B, C, T, H, W).

        Returns:
            tuple: Tokens (B, t*h*w, embed_dims) frame by frame, each in
            raster order, and (t, h, w).
        """
        self._check_size('frames of', tuple(x.shape[3:]))
        self._check_frames('a number of frames of', x.shape[2])
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])
