# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What Vim and VideoMamba share: all but embeddings and start values.

Papers: Vision Mamba (arXiv 2401.09417), VideoMamba (arXiv 2403.06977). Both
are a sequence of patches and class tokens, blocks that scan it forward and
backward, and a norm.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Optional, Union

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from transmamba_mm.checks import check_number
from transmamba_mm.contract import MixerBlock
from transmamba_mm.contract.class_tokens import join_class_tokens
from transmamba_mm.contract.taps import Grid

from ..layers import FFN, BidirectionalMixer
from ..layers.norm import build_token_norm
from ..layers.precision import widened
from .base import MambaBackbone


class BidirectionalBlock(MixerBlock, BaseModule):
    """A norm and a mixer, added to the residual stream; optionally an FFN.

    The originals hand a mixer's output to the next block, which adds it to
    the stream first; this block adds it itself, which are the same sums.

    Args:
        embed_dims (int): Token width.
        mixer_cfg (dict): Further arguments of :class:`BidirectionalMixer`.
        norm_cfg (dict): Norm before the mixer and before the FFN.
        drop_path_rate (float): Stochastic depth rate.
        ffn_ratio (float): FFN width over ``embed_dims``; 0 for none.
            Defaults to 0.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer_cfg: dict,
        norm_cfg: dict,
        drop_path_rate: float,
        ffn_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = build_token_norm(norm_cfg, embed_dims)
        self.mixer = BidirectionalMixer(embed_dims, **mixer_cfg)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = self.ffn = None
        if ffn_ratio:
            self.norm2 = build_token_norm(norm_cfg, embed_dims)
            self.ffn = FFN(embed_dims, ffn_ratio, drop_path_rate)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Mixes tokens.

        Args:
            x (Tensor): Residual stream (B, L, C), class tokens included.
            grid (tuple[int, ...]): Patch grid.

        Returns:
            Tensor: Residual stream (B, L, C).
        """
        # The stream may be wider than the weights; see residual_in_fp32.
        dtype = self.norm.weight.dtype
        x = x + self.drop_path(self.mixer(self.norm(x.to(dtype)), grid))
        if self.ffn is not None:
            x = self.ffn(self.norm2(x.to(dtype)), identity=x)
        return x


class BidirectionalBackbone(MambaBackbone):
    """Base of the backbones made of :class:`BidirectionalMixer`.

    A subclass calls :meth:`reset_parameters` and :meth:`_freeze_stages`
    when it has registered its own parameters.

    Args:
        arch (str | dict): A preset of :attr:`ARCHS`, or a dict with
            ``embed_dims`` and ``num_layers`` and, optionally, ``expand``
            (2), ``ffn_ratio`` (0) and ``norm_cfg`` (RMSNorm).
        patch_embed (Callable): Makes the patch embedding from its
            ``embed_dims``.
        class_token (str): A key of :attr:`CLASS_TOKENS`.
        abs_pos_embed (bool): Whether there is a position embedding.
        mixer_cfg (dict, optional): Further arguments of
            :class:`BidirectionalMixer`.
        norm_cfg (dict, optional): Norm of the blocks and after them; None
            for that of ``arch``.
        residual_in_fp32 (bool): Keep the residual stream in float32 in a
            model of lower precision.
        drop_rate (float): Dropout after the position embedding.
        drop_path_rate (float): Stochastic depth, growing linearly from 0.
        final_norm (bool): Normalise the last layer's output with
            ``norm_f``.
        **kwargs: See :class:`MambaBackbone`.

    Raises:
        ValueError: If ``arch``, ``class_token``, ``mixer_cfg``,
            ``out_type`` or ``out_indices`` is not supported.
    """

    ARCH_OPTIONS: ClassVar[dict] = dict(
        expand=2,
        ffn_ratio=0,
        norm_cfg=dict(type='transmamba.RMSNorm', eps=1e-5),
    )

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
        (r'layers\.(\d+)\.mixer\.A(_b)?_log', r'layers.\1.ssm.A'),
        (r'layers\.(\d+)\.mixer\.D(_b)?', r'layers.\1.ssm.D'),
        (r'layers\.(\d+)\.mixer\.(.+)', r'layers.\1.ssm.\2'),
        (r'layers\.(\d+)\.norm2\.(weight|bias)', r'layers.\1.ffn_norm.\2'),
        (
            r'layers\.(\d+)\.ffn\.layers\.0\.0\.(weight|bias)',
            r'layers.\1.ffn_in.\2',
        ),
        (
            r'layers\.(\d+)\.ffn\.layers\.1\.(weight|bias)',
            r'layers.\1.ffn_out.\2',
        ),
        (r'norm_f\.(weight|bias)', r'final_norm.\1'),
    )

    def __init__(
        self,
        arch: Union[str, dict],
        patch_embed: Callable[..., nn.Module],
        class_token: str,
        abs_pos_embed: bool,
        mixer_cfg: Optional[dict],
        norm_cfg: Optional[dict],
        residual_in_fp32: bool,
        drop_rate: float,
        drop_path_rate: float,
        final_norm: bool,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        arch = self._resolve_arch(arch)
        self._check_class_token(class_token)
        dims, depth = arch['embed_dims'], arch['num_layers']
        self.embed_dims = dims
        self.layer_dims = (dims,) * depth
        self.class_token = class_token
        # Not looked up in `forward`, where it would end torch.compile's graph.
        self.class_token_names = self.CLASS_TOKENS[class_token]
        self.num_extra_tokens = len(self.class_token_names)
        self.residual_in_fp32 = residual_in_fp32
        mixer_cfg = {'expand': arch['expand'], **(mixer_cfg or {})}

        self.patch_embed = patch_embed(embed_dims=dims)
        h, w = self.patch_embed.init_out_size
        for name in self.class_token_names:
            self.register_parameter(
                name, nn.Parameter(torch.empty(1, 1, dims))
            )
        tokens = h * w + self.num_extra_tokens
        self.pos_embed = (
            nn.Parameter(torch.empty(1, tokens, dims))
            if abs_pos_embed
            else None
        )
        self.drop_after_pos = nn.Dropout(
            check_number('drop_rate', drop_rate, 0, 1)
        )

        norm_cfg = norm_cfg or arch['norm_cfg']
        rates = self._drop_path_rates(drop_path_rate)
        self.layers = ModuleList(
            BidirectionalBlock(
                dims,
                mixer_cfg,
                norm_cfg,
                rate,
                arch['ffn_ratio'],
            )
            for rate in rates
        )
        self.directions = self.layers[0].mixer.directions
        self.norm_f = build_token_norm(norm_cfg, dims) if final_norm else None
        self._add_outputs(lambda index: build_token_norm(norm_cfg, dims))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The start values that Vim and VideoMamba share.

        Those of the parts must be fresh; see :class:`FreshStart`.
        """
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for layer in self.layers:
            outputs = [layer.mixer.out_proj]
            if layer.ffn is not None:
                for module in layer.ffn.modules():
                    if isinstance(module, nn.Linear):
                        nn.init.trunc_normal_(module.weight, std=0.02)
                        nn.init.zeros_(module.bias)
                outputs.append(layer.ffn.layers[1])
            # As many summands enter the residual stream.
            summands = len(outputs) * len(self.layers)
            for module in outputs:
                module.weight.div_(math.sqrt(summands))

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

    # ------------------------------------------------------ the contract

    @property
    def layout(self) -> dict[str, Any]:
        """dict: See :attr:`MambaBackbone.layout`."""
        return {
            **super().layout,
            'class_token': self.class_token,
            'divide_out': self.layers[0].mixer.divide_out,
        }

    def class_token_slots(self, *grid: int) -> tuple[int, ...]:
        """See :meth:`GridStudent.class_token_slots`."""
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
        """See :meth:`GridStudent.class_token_positions`."""
        slots = self.class_token_slots(*grid)
        if direction == self.directions[0]:
            return slots
        last = math.prod(grid) + len(slots) - 1
        return tuple(last - slot for slot in reversed(slots))

    # ------------------------------------------------------- computation

    def _positions(self, grid: Grid) -> Optional[Tensor]:
        """What is added to the tokens, (1, L, C), if anything."""
        if self.pos_embed is None:
            return None
        return self._resize_positions(
            self.pos_embed, self.patch_embed.init_out_size, grid
        )

    def _embed(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Grid]:
        """Makes the token sequence that the first layer reads.

        Args:
            x (Tensor): Images or videos.
            **kwargs: Arguments of :meth:`_positions`.

        Returns:
            tuple: Tokens (B, L, C), class tokens included, and the grid.
        """
        x, grid = self.patch_embed(x)
        names = self.class_token_names
        if names:
            classes = torch.cat([getattr(self, name) for name in names], 1)
            x = join_class_tokens(
                # `len(x)` would be a constant in a traced model.
                classes.expand(x.shape[0], -1, -1),
                x,
                self.class_token_slots(*grid),
            )
        positions = self._positions(grid, **kwargs)
        if positions is not None:
            x = self.drop_after_pos(x + positions)
        if self.residual_in_fp32:
            x = widened(x)
        return x, grid

    def _normalise(self, x: Tensor, norm: Optional[nn.Module]) -> Tensor:
        """Brings the residual stream back to the model's precision."""
        x = x.to(self.patch_embed.proj.weight.dtype)
        return x if norm is None else norm(x)
