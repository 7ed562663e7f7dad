# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VideoMamba, for images and for videos.

Paper: VideoMamba (arXiv 2403.06977). Official code: OpenGVLab/VideoMamba
(Apache-2.0), whose image, video and retrieval checkpoints load after
``checkpoints/formats/video_mamba.py``. The mixer is Vim's, with the sum of the
two directions instead of their mean; the class token comes first, and start
values are others.

Differences: images and videos of other sizes than the model is made for are
accepted, and the position embeddings are stretched to them; layer outputs,
feature maps and the taps of each direction are available. What the original's
retrieval variant (``PretrainVideoMamba``) does beyond the others is here
``out_type='pooled'``, two arguments of :meth:`VideoMamba.forward`, and
:meth:`VideoMamba.encode`; its CLIP decoders are
:class:`~transmamba_mm.models.necks.ClipDecoders`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from transmamba_mm.checkpoints.formats import VIDEO_MAMBA
from transmamba_mm.contract.class_tokens import (
    join_class_tokens,
    split_class_tokens,
)
from transmamba_mm.contract.roles import inflated
from transmamba_mm.contract.taps import Grid, active_taps
from transmamba_mm.registry import MODELS

from ..layers import OverlapPatchEmbed, TubeletPatchEmbed
from ..token_mask import keep_tokens
from .bidirectional import BidirectionalBackbone


class VideoFeatures(NamedTuple):
    """What :meth:`VideoMamba.encode` returns.

    Attributes:
        tokens (Tensor): Tokens kept (B, 1 + N, C) after the final norm,
            class token first.
        pooled (Tensor): (B, n, C); see ``pool_type``. Normalised only by a
            backbone of ``out_type='pooled'``, as the others lack the norm.
        layers (list[Tensor]): Features (B, 1 + N, C) of the layers asked
            for, in depth order.
        grid (tuple[int, ...]): Patch grid, (h, w) or (t, h, w).
    """

    tokens: Tensor
    pooled: Tensor
    layers: list[Tensor]
    grid: Grid


@MODELS.register_module()
class VideoMamba(BidirectionalBackbone):
    """VideoMamba backbone, for images or, with ``num_frames``, for videos.

    Videos are (B, C, T, H, W). Their tokens are scanned frame by frame; all
    frames share ``pos_embed``, and ``temporal_pos_embedding`` is added to the
    patches of each. The position of the class token is in ``pos_embed``
    alone.

    A checkpoint of the image model loads into a video model: its patch
    projection becomes the middle frame of the tubelet's, and the temporal
    embedding stays as it is.

    Args:
        arch (str | dict): A preset of :attr:`ARCHS`, or a dict with
            ``embed_dims`` and ``num_layers`` and, optionally, ``expand``
            (2), ``ffn_ratio`` (FFN width over token width; 0 for none) and
            ``norm_cfg`` (RMSNorm). Defaults to ``'tiny'``.
        img_size (int | tuple[int, int]): Image size the position embedding
            is made for; others are interpolated. Defaults to 224.
        patch_size (int | tuple[int, int]): Sides (h, w) of a patch in
            pixels. Defaults to 16.
        stride (int | tuple[int, int], optional): Pixels between patches.
            Defaults to None, the patch size.
        in_channels (int): Image channels. Defaults to 3.
        num_frames (int, optional): Frames the temporal embedding is made
            for; others are interpolated. Defaults to None, which makes the
            image model.
        tubelet_size (int): Frames in a patch (``kernel_size`` of the
            original). Defaults to 1.
        mixer_cfg (dict): Further arguments of
            :class:`~transmamba_mm.models.layers.BidirectionalMixer`.
            Defaults to ``{}``; unlike there, ``divide_out`` defaults to
            False.
        norm_cfg (dict, optional): Norm of the blocks and after them.
            Defaults to None, that of ``arch``,
            ``dict(type='transmamba.RMSNorm', eps=1e-5)``.
        residual_in_fp32 (bool): Keep the residual stream in float32 in a
            model of lower precision. Defaults to True.
        drop_rate (float): Dropout after the position embedding. Defaults
            to 0.
        drop_path_rate (float): Stochastic depth, growing linearly from 0.
            Defaults to 0.
        final_norm (bool): Normalise the last layer's output with
            ``norm_f``. Defaults to True.
        pool_type (str): What ``out_type='pooled'`` (B, n, C) is: ``'cls'``,
            the class token; ``'avg'``, the mean of the patches;
            ``'cls+avg'``, their sum; ``'cls_cat_avg'``, both, one after the
            other (n = 2). Defaults to ``'cls+avg'``.
        keep_temporal (bool): Take a mean for each of the T input frames
            in whole tubelets (n = T) instead of one for all. With
            ``'cls_cat_avg'`` it is then the sum, too, as in the original. It
            splits the patches evenly, so with a mask the means are those of
            the frames only if as many patches are kept in each. Needs
            ``num_frames``. Defaults to False.
        pool_norm (bool): Whether ``out_type='pooled'`` ends with a LayerNorm
            (``add_pool_norm`` of the original). Defaults to True.
        out_indices (Sequence[int] | int): See :class:`MambaBackbone`.
        out_type (str): See :class:`MambaBackbone`. ``'raw'`` includes the
            class token. ``'featmap'``, in videos (B, C, t, h, w), and
            ``'avg_featmap'`` do not. ``'pooled'`` is described above.
            Defaults to ``'cls_token'``.
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
        'middle': dict(embed_dims=576, num_layers=32),
        'base': dict(embed_dims=768, num_layers=24),
    }

    OUT_TYPES = ('raw', 'featmap', 'avg_featmap', 'cls_token', 'pooled')
    POOL_TYPES = ('cls', 'avg', 'cls+avg', 'cls_cat_avg')

    EMBEDDINGS = (*BidirectionalBackbone.EMBEDDINGS, 'temporal_pos_embedding')
    PARAM_ROLES = (
        *BidirectionalBackbone.PARAM_ROLES,
        (r'temporal_pos_embedding', r'temporal_pos_embed'),
    )
    FORMAT = VIDEO_MAMBA

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        img_size: Union[int, tuple[int, int]] = 224,
        patch_size: Union[int, tuple[int, int]] = 16,
        stride: Union[int, tuple[int, int], None] = None,
        in_channels: int = 3,
        num_frames: Optional[int] = None,
        tubelet_size: int = 1,
        mixer_cfg: Optional[dict] = None,
        norm_cfg: Optional[dict] = None,
        residual_in_fp32: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        final_norm: bool = True,
        pool_type: str = 'cls+avg',
        keep_temporal: bool = False,
        pool_norm: bool = True,
        out_indices: Union[int, Sequence[int]] = -1,
        out_type: str = 'cls_token',
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Union[dict, list[dict], None] = None,
    ) -> None:
        embed_cfg = dict(
            in_channels=in_channels,
            patch_size=patch_size,
            stride=patch_size if stride is None else stride,
            input_size=img_size,
        )
        if num_frames is None:
            if tubelet_size != 1 or keep_temporal:
                raise ValueError(
                    f'tubelet_size={tubelet_size!r} and {keep_temporal=} are '
                    f'for videos: set num_frames, or leave both out'
                )
            patch_embed = partial(OverlapPatchEmbed, **embed_cfg)
        else:
            patch_embed = partial(
                TubeletPatchEmbed,
                **embed_cfg,
                num_frames=num_frames,
                tubelet_size=tubelet_size,
            )
        super().__init__(
            arch,
            patch_embed,
            'head',
            True,
            {'divide_out': False, **(mixer_cfg or {})},
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
        if pool_type not in self.POOL_TYPES:
            raise ValueError(
                f'pool_type must be one of {", ".join(self.POOL_TYPES)}, got '
                f'{pool_type!r}'
            )
        self.num_frames = num_frames
        self.tubelet_size = tubelet_size
        self.pool_type = pool_type
        self.keep_temporal = keep_temporal
        dims = self.embed_dims
        self.temporal_pos_embedding = None
        if num_frames is not None:
            self.temporal_pos_embedding = nn.Parameter(
                torch.empty(1, self.patch_embed.init_steps, dims)
            )
        # Only where it is used, lest it waits for gradients in vain.
        self.pool_norm = (
            nn.LayerNorm(dims) if pool_norm and out_type == 'pooled' else None
        )
        self.reset_parameters()
        self._freeze_stages()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official start values, beyond those of the mixers.

        The original draws every linear layer anew and zeroes its bias, so
        the step sizes start at softplus(0).
        """
        super().reset_parameters()
        nn.init.zeros_(self.cls_token)
        if self.temporal_pos_embedding is not None:
            nn.init.zeros_(self.temporal_pos_embedding)
        for layer in self.layers:
            for name, module in layer.mixer.named_children():
                if isinstance(module, nn.Linear) and name != 'out_proj':
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    # ------------------------------------------------------------ positions

    @staticmethod
    def _resize_steps(positions: Tensor, steps: int) -> Tensor:
        """Stretches a temporal embedding (1, T, C) linearly in time."""
        if positions.shape[1] == steps:
            return positions
        resized = F.interpolate(
            positions.mT.float(), size=steps, mode='linear'
        )
        return resized.mT.to(positions.dtype)

    def _positions(self, grid: Grid, use_image: bool = False) -> Tensor:
        """See :meth:`BidirectionalBackbone._positions`."""
        positions = super()._positions(grid[-2:])
        if self.num_frames is None:
            return positions
        steps, h, w = grid
        classes, patches = split_class_tokens(positions, (0,))
        patches = patches.repeat(1, steps, 1)
        if not use_image:
            temporal = self._resize_steps(self.temporal_pos_embedding, steps)
            patches = patches + temporal.repeat_interleave(h * w, dim=1)
        return join_class_tokens(classes, patches, (0,))

    def fitted(
        self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Makes a checkpoint of images, or of other videos, fit, too."""
        tensors = super().fitted(tensors, note)
        if self.num_frames is None:
            return tensors
        own = self.temporal_pos_embedding
        loaded = tensors.get('temporal_pos_embedding')
        if loaded is not None and loaded.shape[1] != own.shape[1]:
            steps = own.shape[1]
            print_log(
                f'resize temporal_pos_embedding from {loaded.shape[1]} to '
                f'{steps} steps',
                logger='current',
            )
            tensors['temporal_pos_embedding'] = self._resize_steps(
                loaded, steps
            )
        weight = tensors.get('patch_embed.proj.weight')
        if weight is None or weight.dim() != 4:
            return tensors
        print_log(
            f'inflate patch_embed.proj.weight, of images, to tubelets of '
            f'{self.tubelet_size} frames',
            logger='current',
        )
        tensors['patch_embed.proj.weight'] = inflated(
            weight, self.tubelet_size
        )
        tensors.setdefault('temporal_pos_embedding', own.detach().clone())
        return tensors

    # ---------------------------------------------------------- computation

    def forward(
        self,
        x: Tensor,
        mask: Optional[Tensor] = None,
        use_image: bool = False,
    ) -> tuple[Tensor, ...]:
        """Extracts features.

        Args:
            x (Tensor): Images (B, C, H, W), or videos (B, C, T, H, W) if the
                model has ``num_frames``.
            mask (Tensor, optional): Bool (B, 1 + patches), True for tokens
                to drop; as many in each row, and never the class token,
                which is the first. Defaults to None.
            use_image (bool): Leave the temporal embedding out, for single
                frames in a video model. Defaults to False.

        Returns:
            tuple[Tensor, ...]: One tensor per ``out_indices``, shaped as
            ``out_type`` says, of the tokens kept.

        Raises:
            ValueError: If ``x`` is no input of this model, or ``mask`` or
                ``use_image`` does not fit it.
            RuntimeError: If the taps are recorded while tokens are dropped.
        """
        tokens, grid = self._embed_kept(x, mask, use_image)
        if mask is not None and self.out_type == 'featmap':
            raise ValueError(
                'tokens dropped by mask leave no map: use another out_type '
                "than 'featmap'"
            )
        return self._run_layers(tokens, grid)

    def encode(
        self,
        x: Tensor,
        mask: Optional[Tensor] = None,
        use_image: bool = False,
        layers: Sequence[int] = (),
        last: str = 'input',
    ) -> VideoFeatures:
        """Features for retrieval and for alignment with CLIP.

        Args:
            x (Tensor): See :meth:`forward`.
            mask (Tensor, optional): See :meth:`forward`.
            use_image (bool): See :meth:`forward`.
            layers (Sequence[int]): Layers whose features are wanted, from 0.
                Those of layers before the last go through the final norm.
                Defaults to none.
            last (str): The features of the last layer, which are not
                normalised: its ``'input'``, as in the original with
                ``fused_add_norm=True``, or its ``'output'``, as without.
                Defaults to ``'input'``.

        Returns:
            VideoFeatures: Tokens, pooled features, features of ``layers``
            and the grid.

        Raises:
            ValueError: As :meth:`forward`, or if ``layers`` or ``last`` is
                not supported.
            RuntimeError: As :meth:`forward`.
        """
        end = self.num_layers - 1
        if any(not 0 <= layer <= end for layer in layers):
            raise ValueError(
                f'layers must be in 0..{end}, the layers of this '
                f'{type(self).__name__}, got {list(layers)}'
            )
        if last not in ('input', 'output'):
            raise ValueError(f"last must be 'input' or 'output', got {last!r}")
        stream, grid = self._embed_kept(x, mask, use_image)
        found = []
        for i in range(self.num_layers):
            before = stream
            stream = self._run_block(self.layers[i], stream, grid)
            if i in layers:
                found.append(
                    self._normalise(stream, self.norm_f)
                    if i < end
                    else self._normalise(
                        before if last == 'input' else stream, None
                    )
                )
        tokens = self._normalise(stream, self.norm_f)
        return VideoFeatures(tokens, self._pool(tokens, grid), found, grid)

    def _embed_kept(
        self, x: Tensor, mask: Optional[Tensor], use_image: bool
    ) -> tuple[Tensor, Grid]:
        """Makes the tokens that the layers see."""
        self._check_input(x, use_image)
        kwargs = {} if self.num_frames is None else dict(use_image=use_image)
        x, grid = self._embed(x, **kwargs)
        if mask is None:
            return x, grid
        if active_taps(self):
            raise RuntimeError(
                'the taps cannot be recorded while mask drops tokens: the '
                'rest is no grid in scan order; record without mask'
            )
        return keep_tokens(x, mask), grid

    def _check_input(self, x: Tensor, use_image: bool) -> None:
        videos = self.num_frames is not None
        if x.dim() != (5 if videos else 4):
            expected, other = (
                ('videos (B, C, T, H, W)', 'leave num_frames out')
                if videos
                else ('images (B, C, H, W)', 'set num_frames')
            )
            raise ValueError(
                f'this {type(self).__name__} takes {expected}, got '
                f'{tuple(x.shape)}; {other} to change that'
            )
        if use_image and not (videos and x.shape[2] == self.tubelet_size):
            raise ValueError(
                'use_image is for single frames (B, C, 1, H, W), or as many '
                'as tubelet_size, in a model with num_frames, got '
                f'{tuple(x.shape)}'
            )

    def _pool(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Pools tokens (B, 1 + N, C), class token first, to (B, n, C)."""
        classes, patches = tokens[:, :1], tokens[:, 1:]
        if self.pool_type == 'cls':
            pooled = classes
        else:
            means = self._means(patches, grid)
            if self.pool_type == 'avg':
                pooled = means
            elif self.pool_type == 'cls_cat_avg' and not self.keep_temporal:
                pooled = torch.cat((classes, means), dim=1)
            else:
                pooled = classes + means
        return pooled if self.pool_norm is None else self.pool_norm(pooled)

    def _means(self, patches: Tensor, grid: Grid) -> Tensor:
        """Mean of all patches (B, 1, C), or of each frame's (B, T, C)."""
        if not self.keep_temporal:
            return patches.mean(dim=1, keepdim=True)
        frames = grid[0] * self.tubelet_size
        if patches.shape[1] % frames:
            raise ValueError(
                f'keep_temporal cannot split {patches.shape[1]} patches '
                f'evenly over {frames} frames: let mask keep a multiple of '
                f'them, or set keep_temporal=False'
            )
        return patches.unflatten(1, (frames, -1)).mean(dim=2)

    def _format_output(self, tokens: Tensor, grid: Grid) -> Tensor:
        """See :meth:`MambaBackbone._format_output`."""
        if self.out_type == 'pooled':
            return self._pool(tokens, grid)
        return super()._format_output(tokens, grid)
