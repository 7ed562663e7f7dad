# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Vision Mamba (Vim), a non-hierarchical Mamba with a class token.

Paper: Vision Mamba (arXiv 2401.09417). Official code: hustvl/Vim
(Apache-2.0), whose checkpoints load after
:func:`convert_vim_state_dict`. The presets ``tiny-d12`` and ``small-d12``
are a reading of the students ViM-T and ViM-S of TransMamba (arXiv
2502.15130, Table 1); see :class:`VisionMamba`.

Differences: images of other sizes than ``img_size`` are accepted, and the
position embedding is stretched to them, around the class token wherever it
stands; layer outputs, feature maps and the taps of each direction are
available. The gradient of ``bimamba_type='v1'`` is the true one; the
original's fused kernel lost a part of it. Rotary positions
(``if_rope``), ``if_bidirectional`` and randomly placed class tokens, which no
released model has, are not supported.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Optional, Union

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, ModuleList
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from transmamba_mm.registry import MODELS

from ..class_tokens import join_class_tokens, split_class_tokens
from ..layers import BidirectionalMixer, DirectionTaps, OverlapPatchEmbed
from .base import MambaBackbone

# A standard normal distribution, cut off at two standard deviations, has
# this standard deviation.
_TRUNCATED_STD = 0.87962566103423978


def convert_vim_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names an official checkpoint's tensors as an mmpretrain classifier's.

    The classifier is an ``ImageClassifier`` of a :class:`VisionMamba` and a
    ``LinearClsHead``.

    Args:
        state_dict (Mapping[str, Any]): What an official file holds: a state
            dict, alone or under ``'model'``.

    Returns:
        dict[str, Tensor]: The same tensors under ``backbone.`` and
        ``head.fc.``.
    """
    state_dict = state_dict.get('model', state_dict)
    return {
        f'head.fc.{key[len("head.") :]}'
        if key.startswith('head.')
        else f'backbone.{key}': value
        for key, value in state_dict.items()
    }


class VimBlock(BaseModule):
    """A norm and a mixer, added to the residual stream.

    The original hands a mixer's output to the next block, which adds it to
    the stream first; this block adds it itself, which are the same sums.

    Args:
        embed_dims (int): Token width.
        directions (Sequence[str]): Forward and backward scan order.
        mixer_cfg (dict): Further arguments of :class:`BidirectionalMixer`.
        norm_cfg (dict): Norm before the mixer.
        drop_path_rate (float): Stochastic depth rate.
    """

    def __init__(
        self,
        embed_dims: int,
        directions: Sequence[str],
        mixer_cfg: dict,
        norm_cfg: dict,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.norm = build_norm_layer(norm_cfg, embed_dims)
        self.mixer = BidirectionalMixer(embed_dims, directions, **mixer_cfg)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps tokens (B, L, C), class tokens included, to the same shape."""
        # The stream may be wider than the weights; see residual_in_fp32.
        normed = self.norm(x.to(self.norm.weight.dtype))
        return x + self.drop_path(self.mixer(normed, grid))


@MODELS.register_module()
class VisionMamba(MambaBackbone):
    """Vision Mamba (Vim) backbone.

    TransMamba's ViM-T and ViM-S have 7.0 and 25.5 M parameters. That is
    ``tiny`` and ``small`` with 100 classes (6,974,308 and 25,450,084). Its
    table also says 12 layers; with the widths of Vim and no FFN only
    ``expand=4`` and LayerNorm then come near (``tiny-d12`` and
    ``small-d12``, 6,974,500 and 25,450,468).

    Args:
        arch (str | dict): A preset of :attr:`ARCHS`, or a dict with
            ``embed_dims`` and ``num_layers`` and, optionally, ``expand``
            (2) and ``norm_cfg`` (RMSNorm). Defaults to ``'tiny'``.
        img_size (int | tuple[int, int]): Image size the position embedding
            is made for; others are interpolated. Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        stride (int, optional): Pixels between patches; less than
            ``patch_size`` makes them overlap, as in the fine-tuned models
            (8). Defaults to None, the patch size.
        in_channels (int): Image channels. Defaults to 3.
        class_token (str): ``'middle'`` of the patches, as released,
            ``'head'`` (before them), ``'double'`` (one before and one after;
            features are their mean) or ``'none'``. Defaults to ``'middle'``.
        mixer_cfg (dict): Further arguments of
            :class:`~transmamba_mm.models.layers.BidirectionalMixer`, e.g.
            ``dict(bimamba_type='v1', divide_out=False)``. Defaults to
            ``{}``.
        norm_cfg (dict, optional): Norm of the blocks and after them, e.g.
            ``dict(type='LN', eps=1e-5)``, which is ``rms_norm=False`` of the
            original. Defaults to None, that of ``arch``, in most
            ``dict(type='transmamba.RMSNorm', eps=1e-5)``.
        residual_in_fp32 (bool): Keep the residual stream in float32 in a
            model of lower precision. Defaults to True.
        drop_rate (float): Dropout after the position embedding. Defaults
            to 0.
        drop_path_rate (float): Stochastic depth, growing linearly from 0.
            Defaults to 0.
        final_norm (bool): Normalise the last layer's output with
            ``norm_f``. Defaults to True.
        out_indices (Sequence[int] | int): See :class:`MambaBackbone`.
        out_type (str): See :class:`MambaBackbone`. ``'raw'`` includes the
            class tokens. ``'featmap'`` and ``'avg_featmap'`` do not.
            Defaults to ``'cls_token'``.
        frozen_stages (int): See :class:`MambaBackbone`.
        norm_eval (bool): See :class:`MambaBackbone`.
        with_cp (bool): See :class:`MambaBackbone`.
        init_cfg (dict | list[dict], optional): Defaults to None, the
            official start values.

    Raises:
        ValueError: If ``arch``, ``class_token``, ``mixer_cfg``, ``stride``,
            ``img_size``, ``out_type`` or ``out_indices`` is not supported.
    """

    ARCH_OPTIONS: ClassVar[dict] = dict(
        expand=2, norm_cfg=dict(type='transmamba.RMSNorm', eps=1e-5)
    )
    ARCHS: ClassVar[dict[str, dict]] = {
        'tiny': dict(embed_dims=192, num_layers=24),
        'small': dict(embed_dims=384, num_layers=24),
        'base': dict(embed_dims=768, num_layers=24),
        'tiny-d12': dict(
            embed_dims=192,
            num_layers=12,
            expand=4,
            norm_cfg=dict(type='LN', eps=1e-5),
        ),
        'small-d12': dict(
            embed_dims=384,
            num_layers=12,
            expand=4,
            norm_cfg=dict(type='LN', eps=1e-5),
        ),
    }

    #: Parameters that hold class tokens, in the order of the sequence.
    CLASS_TOKENS: ClassVar[dict[str, tuple[str, ...]]] = {
        'none': (),
        'head': ('cls_token',),
        'middle': ('cls_token',),
        'double': ('cls_token_head', 'cls_token_tail'),
    }

    OUT_TYPES = ('raw', 'featmap', 'avg_featmap', 'cls_token')
    FINAL_NORM = 'norm_f'

    # Both directions have the role of the one they are built like, so that
    # transfer treats them alike.
    PARAM_ROLES = (
        (r'patch_embed\.proj\.(weight|bias)', r'patch_embed.\1'),
        (r'pos_embed', r'pos_embed'),
        (r'cls_token(_head|_tail)?', r'cls_token'),
        (r'layers\.(\d+)\.norm\.(weight|bias)', r'layers.\1.mixer_norm.\2'),
        (
            r'layers\.(\d+)\.mixer\.out_proj\.(weight|bias)',
            r'layers.\1.mixer_out.\2',
        ),
        (
            r'layers\.(\d+)\.mixer\.conv1d(?:_b)?\.(\w+)',
            r'layers.\1.ssm.conv.\2',
        ),
        (
            r'layers\.(\d+)\.mixer\.(x_proj|dt_proj)(?:_b)?\.(\w+)',
            r'layers.\1.ssm.\2.\3',
        ),
        (r'layers\.(\d+)\.mixer\.(.+)', r'layers.\1.ssm.\2'),
        (r'norm_f\.(weight|bias)', r'final_norm.\1'),
    )

    directions = ('raster', 'raster_reverse')

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        img_size: Union[int, tuple[int, int]] = 224,
        patch_size: int = 16,
        stride: Optional[int] = None,
        in_channels: int = 3,
        class_token: str = 'middle',
        mixer_cfg: Optional[dict] = None,
        norm_cfg: Optional[dict] = None,
        residual_in_fp32: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        final_norm: bool = True,
        out_indices: Union[int, Sequence[int]] = -1,
        out_type: str = 'cls_token',
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Union[dict, list[dict], None] = None,
    ) -> None:
        super().__init__(
            out_indices,
            out_type,
            frozen_stages,
            norm_eval,
            with_cp,
            init_cfg,
        )
        arch = self._resolve_arch(arch)
        self._check_class_token(class_token)
        stride = patch_size if stride is None else stride
        if stride < 1:
            raise ValueError(f'stride must be at least 1, got {stride}')
        dims, depth = arch['embed_dims'], arch['num_layers']
        self.embed_dims = dims
        self.layer_dims = (dims,) * depth
        self.class_token = class_token
        self.num_extra_tokens = len(self.CLASS_TOKENS[class_token])
        self.residual_in_fp32 = residual_in_fp32
        self.out_indices = self._resolve_out_indices()

        self.patch_embed = OverlapPatchEmbed(
            in_channels, dims, patch_size, stride, img_size
        )
        h, w = self.patch_embed.init_out_size
        for name in self.CLASS_TOKENS[class_token]:
            self.register_parameter(
                name, nn.Parameter(torch.empty(1, 1, dims))
            )
        self.pos_embed = nn.Parameter(
            torch.empty(1, h * w + self.num_extra_tokens, dims)
        )
        self.drop_after_pos = nn.Dropout(drop_rate)

        norm_cfg = norm_cfg or arch['norm_cfg']
        mixer_cfg = {'expand': arch['expand'], **(mixer_cfg or {})}
        rates = torch.linspace(0, drop_path_rate, depth, device='cpu')
        self.layers = ModuleList(
            VimBlock(dims, self.directions, mixer_cfg, norm_cfg, rate.item())
            for rate in rates
        )
        self.norm_f = build_norm_layer(norm_cfg, dims) if final_norm else None
        # Outputs of earlier layers have a norm of their own; the last
        # layer's is `norm_f`.
        for index in self.out_indices:
            if index != depth - 1:
                self.add_module(
                    f'norm_layer{index}', build_norm_layer(norm_cfg, dims)
                )
        self._draw_start_values()
        self._freeze_stages()

    @torch.no_grad()
    def _draw_start_values(self) -> None:
        """The official start values, beyond those of the mixers."""
        for name in ('pos_embed', *self.CLASS_TOKENS[self.class_token]):
            nn.init.trunc_normal_(getattr(self, name), std=0.02)
        # "LeCun normal", as timm draws it.
        weight = self.patch_embed.proj.weight
        std = weight[0].numel() ** -0.5 / _TRUNCATED_STD
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.patch_embed.proj.bias)
        for layer in self.layers:
            # As many summands enter the residual stream.
            layer.mixer.out_proj.weight.div_(math.sqrt(len(self.layers)))

    def _check_class_token(self, class_token: str) -> None:
        if class_token not in self.CLASS_TOKENS:
            raise ValueError(
                f'class_token must be one of {", ".join(self.CLASS_TOKENS)}, '
                f'got {class_token!r}'
            )
        if self.out_type == 'cls_token' and class_token == 'none':
            raise ValueError(
                "out_type='cls_token' needs a class token, but class_token "
                "is 'none': set out_type='avg_featmap'"
            )

    def taps(self) -> list[DirectionTaps]:
        """See :meth:`MambaBackbone.taps`."""
        return [layer.mixer.taps for layer in self.layers]

    def blocks(self) -> list[nn.Module]:
        """See :meth:`MambaBackbone.blocks`."""
        return list(self.layers)

    def class_token_slots(self, *grid: int) -> tuple[int, ...]:
        """See :meth:`MambaBackbone.class_token_slots`."""
        patches = math.prod(grid)
        return {
            'none': (),
            'head': (0,),
            'middle': (patches // 2,),
            'double': (0, patches + 1),
        }[self.class_token]

    def class_token_positions(
        self, direction: str, *grid: int
    ) -> tuple[int, ...]:
        """See :meth:`MambaBackbone.class_token_positions`."""
        slots = self.class_token_slots(*grid)
        if direction == self.directions[0]:
            return slots
        last = math.prod(grid) + len(slots) - 1
        return tuple(last - slot for slot in reversed(slots))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extracts features from images (B, C, H, W).

        Returns:
            tuple[Tensor, ...]: One tensor per ``out_indices``, shaped as
            ``out_type`` says.

        Raises:
            ValueError: If an image is smaller than a patch.
        """
        x, grid = self.patch_embed(x)
        dtype = self.pos_embed.dtype
        slots = self.class_token_slots(*grid)
        if slots:
            names = self.CLASS_TOKENS[self.class_token]
            classes = torch.cat([getattr(self, name) for name in names], 1)
            classes = classes.expand(len(x), -1, -1)
            x = join_class_tokens(classes, x, slots)
        x = x + self._resize_positions(
            self.pos_embed, self.patch_embed.init_out_size, grid
        )
        x = self.drop_after_pos(x)
        if self.residual_in_fp32:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        last = len(self.layers) - 1
        outs = []
        for i, layer in enumerate(self.layers):
            x = self._run_block(layer, x, grid)
            if i in self.out_indices:
                norm = getattr(self, f'norm_layer{i}', None)
                norm = self.norm_f if i == last else norm
                out = x.to(dtype)
                out = out if norm is None else norm(out)
                outs.append(self._format_tokens(out, grid, slots))
        return tuple(outs)

    def _format_tokens(
        self, tokens: Tensor, grid: tuple[int, int], slots: tuple[int, ...]
    ) -> Tensor:
        """Shapes a token sequence (B, L, C) as ``out_type`` says."""
        if self.out_type == 'raw':
            return tokens
        classes, patches = split_class_tokens(tokens, slots)
        if self.out_type == 'cls_token':
            return classes.mean(dim=1)
        return self._format_output(patches, grid)
