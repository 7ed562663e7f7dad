# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Vision Mamba (Vim), a non-hierarchical Mamba with a class token.

Paper: Vision Mamba (arXiv 2401.09417). Official code: hustvl/Vim
(Apache-2.0), whose checkpoints load after
``checkpoints/formats/vim.py``. The presets ``tiny-d12`` and ``small-d12``
are a reading of the students ViM-T and ViM-S of TransMamba (arXiv
2502.15130, Table 1); see :class:`VisionMamba`.

Differences: images of other sizes than ``img_size`` are accepted, and the
position embedding is stretched to them, around the class token wherever it
stands; layer outputs, feature maps and the taps of each direction are
available. The gradient of ``bimamba_type='v1'`` is the true one; the
original's fused kernel lost a part of it. ``if_bidirectional``, randomly
placed class tokens, rotary positions and shuffled or flipped sequences, which
no released model has, are not supported. Beyond the original, blocks may have
an FFN.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Optional, Union

import torch
from torch import Tensor, nn

from transmamba_mm.checkpoints.formats import VIM
from transmamba_mm.contract.taps import Grid
from transmamba_mm.registry import MODELS

from ..layers import OverlapPatchEmbed
from .bidirectional import BidirectionalBackbone

# A standard normal distribution, cut off at two standard deviations, has
# this standard deviation.
_TRUNCATED_STD = 0.87962566103423978


@MODELS.register_module()
class VisionMamba(BidirectionalBackbone):
    """Vision Mamba (Vim) backbone.

    TransMamba's ViM-T and ViM-S have 7.0 and 25.5 M parameters. That is
    ``tiny`` and ``small`` with 100 classes (6,974,308 and 25,450,084). Its
    table also says 12 layers; with the widths of Vim and no FFN only
    ``expand=4`` and LayerNorm then come near (``tiny-d12`` and
    ``small-d12``, 6,974,500 and 25,450,468). The FFN and LayerNorm that its
    text adds to each block are in ``tiny-d12-ffn4`` and ``small-d12-ffn4``
    (7,147,300 and 27,123,172), of which subcloning can copy much more.

    The original's ``final_pool_type``, which acts without class token, is
    ``out_type`` here: ``'mean'`` is ``'avg_featmap'``, ``'none'`` is
    ``'last_token'``, and ``'all'`` is ``'raw'``: a linear head on it gives
    the logits of every token, whose maximum over the tokens is ``'max'``.

    Args:
        arch (str | dict): A preset of :attr:`ARCHS`, or a dict with
            ``embed_dims`` and ``num_layers`` and, optionally, ``expand``
            (2), ``ffn_ratio`` (FFN width over token width; 0 for none) and
            ``norm_cfg`` (RMSNorm). Defaults to ``'tiny'``.
        img_size (int | tuple[int, int]): Image size the position embedding
            is made for; others are interpolated. Defaults to 224.
        patch_size (int | tuple[int, int]): Sides (h, w) of a patch in
            pixels. Defaults to 16.
        stride (int | tuple[int, int], optional): Pixels between patches;
            less than ``patch_size`` makes them overlap, as in the fine-tuned
            models (8). Defaults to None, the patch size.
        in_channels (int): Image channels. Defaults to 3.
        class_token (str): ``'middle'`` of the patches, as released,
            ``'head'`` (before them), ``'double'`` (one before and one after;
            features are their mean) or ``'none'``. Defaults to ``'middle'``.
        abs_pos_embed (bool): Whether positions are learned and added.
            Defaults to True.
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
            ``'last_token'`` (B, C) is the last patch. Defaults to
            ``'cls_token'``.
        frozen_stages (int): See :class:`MambaBackbone`.
        norm_eval (bool): See :class:`MambaBackbone`.
        with_cp (bool): See :class:`MambaBackbone`.
        init_cfg (dict | list[dict], optional): Defaults to None, the
            official start values.

    Raises:
        ValueError: If a setting is not supported.
    """

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
        'tiny-d12-ffn4': dict(
            embed_dims=192,
            num_layers=12,
            ffn_ratio=4,
            norm_cfg=dict(type='LN', eps=1e-5),
        ),
        'small-d12-ffn4': dict(
            embed_dims=384,
            num_layers=12,
            ffn_ratio=4,
            norm_cfg=dict(type='LN', eps=1e-5),
        ),
    }

    OUT_TYPES = ('raw', 'featmap', 'avg_featmap', 'cls_token', 'last_token')

    FORMAT = VIM

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        img_size: Union[int, tuple[int, int]] = 224,
        patch_size: Union[int, tuple[int, int]] = 16,
        stride: Union[int, tuple[int, int], None] = None,
        in_channels: int = 3,
        class_token: str = 'middle',
        abs_pos_embed: bool = True,
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
            arch,
            partial(
                OverlapPatchEmbed,
                in_channels,
                patch_size=patch_size,
                stride=patch_size if stride is None else stride,
                input_size=img_size,
            ),
            class_token,
            abs_pos_embed,
            mixer_cfg,
            norm_cfg,
            residual_in_fp32,
            drop_rate,
            drop_path_rate,
            final_norm,
            out_indices=out_indices,
            out_type=out_type,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.reset_parameters()
        self._freeze_stages()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official start values, beyond those of the mixers."""
        super().reset_parameters()
        for name in self.class_token_names:
            nn.init.trunc_normal_(getattr(self, name), std=0.02)
        # "LeCun normal", as timm draws it.
        weight = self.patch_embed.proj.weight
        std = weight[0].numel() ** -0.5 / _TRUNCATED_STD
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.patch_embed.proj.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extracts features.

        Args:
            x (Tensor): Images (B, C, H, W), any H and W.

        Returns:
            tuple[Tensor, ...]: One tensor per ``out_indices``, shaped as
            ``out_type`` says.

        Raises:
            ValueError: If an image is smaller than a patch.
        """
        return self._run_layers(*self._embed(x))

    def _format_output(self, tokens: Tensor, grid: Grid) -> Tensor:
        """See :meth:`MambaBackbone._format_output`."""
        if self.out_type == 'last_token':
            return self.split(tokens, grid)[1][:, -1]
        return super()._format_output(tokens, grid)
