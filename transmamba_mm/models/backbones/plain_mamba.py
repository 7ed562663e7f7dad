# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""PlainMamba, a non-hierarchical Mamba for images.

Paper: PlainMamba (arXiv 2403.17695); the presets ``pmamba-*`` are the
students of TransMamba (arXiv 2502.15130, Table 1). Official code:
ChenhongyiYang/PlainMamba (Apache-2.0), whose checkpoints load unchanged.

Beyond the original: ``stem='patch'`` takes a ViT's patch embedding, so that it
can be subcloned; ``ffn_ratio`` adds the MLP that TransMamba's text describes
(its Table 1 has none, the default here); ``directions`` accepts any
registered scan orders.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Optional, Union

import torch
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from transmamba_mm.checkpoints.formats import PLAIN_MAMBA
from transmamba_mm.checks import (
    check_directions,
    check_images,
    check_int,
    check_ints,
    check_number,
    check_pair,
)
from transmamba_mm.contract import MixerBlock
from transmamba_mm.contract.scan_orders import fix_size
from transmamba_mm.registry import MODELS

from ..layers import FFN, ConvPatchEmbed, PlainMambaMixer
from ..layers.norm import build_token_norm
from .base import TRUNC_NORMAL_INIT, MambaBackbone


class PlainMambaLayer(MixerBlock, BaseModule):
    """A residual mixer, an optional FFN and an optional depth-wise conv.

    Args:
        embed_dims (int): Token width.
        directions (Sequence[str]): Registered scan orders.
        mixer_cfg (dict): Further arguments of :class:`PlainMambaMixer`.
        norm_cfg (dict): Norm before the mixer and before the FFN.
        ffn_ratio (float): FFN width over ``embed_dims``; 0 for none.
        drop_path_rate (float): Stochastic depth rate.
        drop_rate (float): Dropout inside the FFN.
        with_dwconv (bool): End with a 3x3 depth-wise convolution, which has
            no residual connection around it (as in PlainMamba-L1).
    """

    MIXER = 'mamba'

    def __init__(
        self,
        embed_dims: int,
        directions: Sequence[str],
        mixer_cfg: dict,
        norm_cfg: dict,
        ffn_ratio: float,
        drop_path_rate: float,
        drop_rate: float,
        with_dwconv: bool,
    ) -> None:
        super().__init__()
        self.norm = build_token_norm(norm_cfg, embed_dims)
        self.mamba = PlainMambaMixer(embed_dims, directions, **mixer_cfg)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = self.ffn = self.dw = None
        if ffn_ratio:
            self.norm2 = build_token_norm(norm_cfg, embed_dims)
            self.ffn = FFN(embed_dims, ffn_ratio, drop_path_rate, drop_rate)
        if with_dwconv:
            self.dw = nn.Sequential(
                nn.Conv2d(
                    embed_dims,
                    embed_dims,
                    3,
                    padding=1,
                    groups=embed_dims,
                    bias=False,
                ),
                nn.BatchNorm2d(embed_dims),
                nn.GELU(),
            )

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps raster tokens (B, h*w, C) to the same shape."""
        x = x + self.drop_path(self.mamba(self.norm(x), grid))
        if self.ffn is not None:
            x = self.ffn(self.norm2(x), identity=x)
        if self.dw is not None:
            # Not `mT`: PyTorch's BatchNorm has a wrong gradient on the CPU
            # where the strides of a batch of one do not tell its layout.
            x = x.unflatten(1, grid).permute(0, 3, 1, 2)
            x = self.dw(x).permute(0, 2, 3, 1).flatten(1, 2)
        return x


@MODELS.register_module()
class PlainMamba(MambaBackbone):
    """PlainMamba backbone.

    Args:
        arch (str | dict): A preset of :attr:`ARCHS`, or a dict with
            ``embed_dims`` and ``num_layers`` and, optionally,
            ``num_convs_patch_embed`` (1) and ``layers_with_dwconv`` (()).
            Defaults to ``'pmamba-tiny'``.
        img_size (int | tuple[int, int]): Image size the position embedding
            is made for; others are interpolated. Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        in_channels (int): Image channels. Defaults to 3.
        stem (str): ``'conv'``, PlainMamba's own, or ``'patch'``, a ViT's
            patch embedding. Defaults to ``'conv'``.
        ffn_ratio (float): FFN width over token width in each block; 0 means
            no FFN, as released. Defaults to 0.
        directions (Sequence[str]): Registered scan orders. Defaults to the
            four continuous scans of the paper.
        mixer_cfg (dict): Further arguments of
            :class:`~transmamba_mm.models.layers.PlainMambaMixer`, e.g.
            ``dict(d_state=16, expand=2)``. Defaults to ``{}``.
        norm_cfg (dict): Norm inside the blocks. Defaults to
            ``dict(type='LN', eps=1e-5)``; ``dict(type='transmamba.RMSNorm')``
            is the ``use_rms_norm`` of the original.
        with_pos_embed (bool): Whether to learn a position embedding.
            Defaults to True.
        drop_rate (float): Dropout after the position embedding and in the
            FFN. Defaults to 0.
        drop_path_rate (float): Stochastic depth, growing linearly from 0.
            Defaults to 0.
        final_norm (bool): Normalise the last layer's output with ``ln1``
            (LayerNorm, eps 1e-6). Defaults to True.
        out_indices (Sequence[int] | int): See :class:`MambaBackbone`.
        out_type (str): See :class:`MambaBackbone`.
        frozen_stages (int): See :class:`MambaBackbone`.
        norm_eval (bool): See :class:`MambaBackbone`.
        with_cp (bool): See :class:`MambaBackbone`.
        init_cfg (dict | list[dict], optional): Defaults to the official
            training start: every Linear truncated normal (0.02) with zero
            bias, ``dt_proj`` included, LayerNorms 1/0. Pass ``[]`` to keep
            the Mamba step-size initialisation instead.

    Raises:
        KeyError: If a direction is no registered scan order.
        ValueError: If a setting is not supported.
    """

    ARCH_OPTIONS: ClassVar[dict] = dict(
        num_convs_patch_embed=1, layers_with_dwconv=()
    )
    ARCH_CHECKS: ClassVar[dict] = dict(
        MambaBackbone.ARCH_CHECKS,
        num_convs_patch_embed=partial(check_int, minimum=0),
    )
    ARCHS: ClassVar[dict[str, dict]] = {
        'L1': dict(embed_dims=192, num_layers=24, layers_with_dwconv=(0,)),
        'L2': dict(embed_dims=384, num_layers=24, num_convs_patch_embed=2),
        'L3': dict(embed_dims=448, num_layers=36, num_convs_patch_embed=2),
        'pmamba-tiny': dict(
            embed_dims=192, num_layers=12, num_convs_patch_embed=2
        ),
        'pmamba-small': dict(
            embed_dims=384, num_layers=12, num_convs_patch_embed=2
        ),
        'pmamba-base': dict(
            embed_dims=768, num_layers=12, num_convs_patch_embed=2
        ),
    }

    # A convolutional stem has no counterpart in a ViT, hence the shape-free
    # `patch_embed.*` role only for the parameters both stems share by name;
    # transfer compares shapes and leaves a 64-channel projection fresh.
    PARAM_ROLES = (
        (r'patch_embed\.projection\.(weight|bias)', r'patch_embed.\1'),
        (r'pos_embed', r'pos_embed'),
        (r'layers\.(\d+)\.norm\.(weight|bias)', r'layers.\1.mixer_norm.\2'),
        (
            r'layers\.(\d+)\.mamba\.out_proj\.(weight|bias)',
            r'layers.\1.mixer_out.\2',
        ),
        (r'layers\.(\d+)\.mamba\.in_proj\.(\w+)', r'layers.\1.ssm.in_proj.\2'),
        (r'layers\.(\d+)\.mamba\.conv2d\.(\w+)', r'layers.\1.ssm.conv.\2'),
        (r'layers\.(\d+)\.mamba\.A_log', r'layers.\1.ssm.A'),
        (r'layers\.(\d+)\.mamba\.direction_Bs', r'layers.\1.ssm.direction'),
        (r'layers\.(\d+)\.mamba\.(.+)', r'layers.\1.ssm.\2'),
        (r'layers\.(\d+)\.norm2\.(weight|bias)', r'layers.\1.ffn_norm.\2'),
        (
            r'layers\.(\d+)\.ffn\.layers\.0\.0\.(weight|bias)',
            r'layers.\1.ffn_in.\2',
        ),
        (
            r'layers\.(\d+)\.ffn\.layers\.1\.(weight|bias)',
            r'layers.\1.ffn_out.\2',
        ),
        (r'ln1\.(weight|bias)', r'final_norm.\1'),
    )

    FORMAT = PLAIN_MAMBA

    def __init__(
        self,
        arch: Union[str, dict] = 'pmamba-tiny',
        img_size: Union[int, tuple[int, int]] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        stem: str = 'conv',
        ffn_ratio: float = 0.0,
        directions: Sequence[str] = (
            'snake_horizontal',
            'snake_horizontal_reverse',
            'snake_vertical',
            'snake_vertical_reverse',
        ),
        mixer_cfg: Optional[dict] = None,
        norm_cfg: Optional[dict] = None,
        with_pos_embed: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        final_norm: bool = True,
        out_indices: Union[int, Sequence[int]] = -1,
        out_type: str = 'avg_featmap',
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Union[dict, list[dict], None] = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = TRUNC_NORMAL_INIT
        super().__init__(
            out_indices,
            out_type,
            frozen_stages,
            norm_eval,
            with_cp,
            init_cfg,
        )
        arch = self._resolve_arch(arch)
        dims, depth = arch['embed_dims'], arch['num_layers']
        self.embed_dims = dims
        self.layer_dims = (dims,) * depth
        self.directions = check_directions(directions)
        with_dwconv = check_ints(
            'layers_with_dwconv', arch['layers_with_dwconv'], 0, depth - 1
        )
        in_channels = check_int('in_channels', in_channels)
        patch_size = check_int('patch_size', patch_size)
        img_size = check_pair('img_size', img_size)
        check_number('drop_rate', drop_rate, 0, 1)

        if stem == 'conv':
            self.patch_embed = ConvPatchEmbed(
                in_channels,
                dims,
                patch_size,
                num_convs=arch['num_convs_patch_embed'],
                input_size=img_size,
            )
        elif stem == 'patch':
            self.patch_embed = PatchEmbed(
                in_channels,
                dims,
                kernel_size=patch_size,
                stride=patch_size,
                input_size=img_size,
            )
        else:
            raise ValueError(f"stem must be 'conv' or 'patch', got {stem!r}")

        self.register_parameter('pos_embed', None)
        if with_pos_embed:
            h, w = self.patch_embed.init_out_size
            self.pos_embed = nn.Parameter(torch.empty(1, h * w, dims))
        self.drop_after_pos = nn.Dropout(drop_rate)

        rates = self._drop_path_rates(drop_path_rate)
        self.layers = ModuleList(
            PlainMambaLayer(
                dims,
                self.directions,
                mixer_cfg=mixer_cfg or {},
                norm_cfg=norm_cfg or dict(type='LN', eps=1e-5),
                ffn_ratio=ffn_ratio,
                drop_path_rate=rates[i],
                drop_rate=drop_rate,
                with_dwconv=i in with_dwconv,
            )
            for i in range(depth)
        )
        self.ln1 = nn.LayerNorm(dims, eps=1e-6) if final_norm else None
        self._add_outputs(lambda index: nn.LayerNorm(dims, eps=1e-6))
        self.reset_parameters()
        self._freeze_stages()

    def reset_parameters(self) -> None:
        """The official start values, beyond those of the parts."""
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extracts features.

        Args:
            x (Tensor): Images (B, C, H, W), any H and W.

        Returns:
            tuple[Tensor, ...]: One tensor per ``out_indices``, shaped as
            ``out_type`` says.

        Raises:
            ValueError: If ``x`` is no images.
        """
        check_images(x)
        fix_size(x)
        x, grid = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self._resize_positions(
                self.pos_embed, self.patch_embed.init_out_size, grid
            )
        return self._run_layers(self.drop_after_pos(x), grid)
