# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VMamba, a hierarchical Mamba whose scans cross each other.

Paper: VMamba (arXiv 2401.10166). Official code: MzeroMiko/VMamba (MIT),
whose checkpoints load by ``checkpoints/formats/vmamba.py``. The presets
``transmamba-*`` are readings of the student VMamba-T of TransMamba (arXiv
2502.15130, Table 1); see :class:`VMamba`.

Differences: tokens are channel-last throughout, which changes no number; the
final norm belongs to the backbone; the taps of each direction are available;
``directions`` accepts any registered scan orders. Of the original's many
settings only those are here that a released model or the paper needs.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Union

from mmengine.model import ModuleDict, ModuleList
from torch import Tensor, nn

from transmamba_mm.checkpoints.formats import VMAMBA
from transmamba_mm.checks import (
    check_directions,
    check_int,
    check_ints,
    check_number,
    is_sequence,
)
from transmamba_mm.contract.scan_orders import fix_size
from transmamba_mm.registry import MODELS

from ..layers.vmamba_blocks import (
    NoDownsample,
    VMambaBlock,
    VMambaStem,
    build_downsample,
)
from .base import TRUNC_NORMAL_INIT, MambaBackbone

_VANILLA = dict(
    d_state=16,
    ssm_ratio=2.0,
    conv_bias=True,
    gated=True,
    mlp_ratio=0.0,
    patch_embed='v1',
    downsample='v1',
)
_STUDENT = dict(embed_dims=96, depths=(2, 2, 9, 2), d_state=16, ssm_ratio=2.0)


def _check_depths(name: str, value: Any) -> tuple[int, ...]:
    if not is_sequence(value) or not value:
        raise ValueError(
            f'{name} must name at least one block for each stage, got '
            f'{value!r}'
        )
    return check_ints(name, value)


@MODELS.register_module()
class VMamba(MambaBackbone):
    """VMamba backbone.

    TransMamba's VMamba-T has 15 layers and 40.5 M parameters, which no
    released model has. ``transmamba-tiny`` is VMamba's second version with
    nine blocks in the third stage, 16 states and ``ssm_ratio=2``:
    40,487,080 parameters with 1000 classes. ``transmamba-tiny-conv-bias``
    (40,498,216) and ``transmamba-tiny-gated`` (that, a gate, and an MLP of
    ratio 3 for it; 40,492,648) come as near. ``transmamba-tiny-wide`` is the
    configuration in the code that the authors published later, 38,375,396
    with its 100 classes.

    Args:
        arch (str | dict): A preset of :attr:`ARCHS`, or a dict with
            ``embed_dims`` (the width of the first stage, which doubles) and
            ``depths`` (blocks of each stage) and, optionally, ``d_state``
            (1), ``ssm_ratio`` (1), ``conv_bias`` (False) and ``gated``
            (False) as in :class:`~transmamba_mm.models.layers.CrossScanMixer`
            (``ssm_ratio`` is its ``expand``), ``mlp_ratio`` (4; 0 for no
            MLP), ``patch_embed`` (``'v1'`` or ``'v2'``, the default) and
            ``downsample`` (``'v1'`` or ``'v3'``, the default). Defaults to
            ``'tiny-s1l8'``.
        img_size (int | tuple[int, int]): Image size that the token grid is
            stated for; there is no position embedding, and others serve as
            well. Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 4.
        in_channels (int): Image channels. Defaults to 3.
        directions (Sequence[str]): Registered scan orders. Defaults to row,
            column, and the reverse of each. Those of ``v051d`` and
            ``v052d`` are in :attr:`DIRECTIONS`.
        drop_rate (float): Dropout after each mixer and in the MLPs. Defaults
            to 0.
        drop_path_rate (float): Stochastic depth, growing linearly from 0
            over all blocks. Defaults to 0.
        final_norm (bool): Normalise the last stage's output with ``norm``.
            Defaults to True.
        out_indices (Sequence[int] | int): Stages whose output is returned,
            before it is downsampled; negative counts from the end. Earlier
            stages have norms of their own, ``outnorm<stage>``. Defaults to
            -1.
        out_type (str): See :class:`MambaBackbone`.
        frozen_stages (int): Number of first stages to freeze together with
            the embeddings; -1 freezes nothing. Defaults to -1.
        norm_eval (bool): See :class:`MambaBackbone`.
        with_cp (bool): See :class:`MambaBackbone`.
        init_cfg (dict | list[dict], optional): Defaults to the official
            start: every Linear truncated normal (0.02) with zero bias,
            LayerNorms 1/0.

    Raises:
        KeyError: If a direction is no registered scan order.
        ValueError: If a setting is not supported.
    """

    ARCH_KEYS = ('embed_dims', 'depths')
    ARCH_OPTIONS: ClassVar[dict] = dict(
        d_state=1,
        ssm_ratio=1.0,
        conv_bias=False,
        gated=False,
        mlp_ratio=4.0,
        patch_embed='v2',
        downsample='v3',
    )
    ARCH_CHECKS: ClassVar[dict] = dict(
        embed_dims=check_int, depths=_check_depths
    )
    ARCHS: ClassVar[dict[str, dict]] = {
        'tiny-s1l8': dict(embed_dims=96, depths=(2, 2, 8, 2)),
        'small-s1l20': dict(embed_dims=96, depths=(2, 2, 20, 2)),
        'base-s1l20': dict(embed_dims=128, depths=(2, 2, 20, 2)),
        'tiny-s2l5': dict(embed_dims=96, depths=(2, 2, 5, 2), ssm_ratio=2.0),
        'small-s2l15': dict(
            embed_dims=96, depths=(2, 2, 15, 2), ssm_ratio=2.0
        ),
        'base-s2l15': dict(
            embed_dims=128, depths=(2, 2, 15, 2), ssm_ratio=2.0
        ),
        'vanilla-tiny': dict(embed_dims=96, depths=(2, 2, 9, 2), **_VANILLA),
        'vanilla-small': dict(embed_dims=96, depths=(2, 2, 27, 2), **_VANILLA),
        'vanilla-base': dict(embed_dims=128, depths=(2, 2, 27, 2), **_VANILLA),
        'transmamba-tiny': _STUDENT,
        'transmamba-tiny-conv-bias': dict(_STUDENT, conv_bias=True),
        'transmamba-tiny-gated': dict(
            _STUDENT, conv_bias=True, gated=True, mlp_ratio=3.0
        ),
        'transmamba-tiny-wide': dict(
            embed_dims=128, depths=(2, 2, 9, 2), **_VANILLA
        ),
    }

    #: Scan directions of the original's variants.
    DIRECTIONS: ClassVar[dict[str, tuple[str, ...]]] = {
        'cross': ('raster', 'column', 'raster_reverse', 'column_reverse'),
        'v051d': ('raster', 'raster:2', 'raster:3', 'raster:4'),
        'v052d': (
            'raster',
            'raster:2',
            'raster_reverse',
            'raster_reverse:2',
        ),
    }

    # Blocks are counted over all stages here; see `_name_for_roles`.
    PARAM_ROLES = (
        (r'patch_embed\.proj\.(weight|bias)', r'patch_embed.\1'),
        (r'patch_embed\.norm\.(weight|bias)', r'patch_norm.\1'),
        (r'pos_embed', r'pos_embed'),
        (r'blocks\.(\d+)\.norm\.(weight|bias)', r'layers.\1.mixer_norm.\2'),
        (
            r'blocks\.(\d+)\.op\.out_proj\.(weight|bias)',
            r'layers.\1.mixer_out.\2',
        ),
        (r'blocks\.(\d+)\.op\.conv2d\.(\w+)', r'layers.\1.ssm.conv.\2'),
        (r'blocks\.(\d+)\.op\.x_proj_weight', r'layers.\1.ssm.x_proj.weight'),
        (
            r'blocks\.(\d+)\.op\.dt_projs_(weight|bias)',
            r'layers.\1.ssm.dt_proj.\2',
        ),
        (r'blocks\.(\d+)\.op\.(A|D)(?:_log)?s', r'layers.\1.ssm.\2'),
        (r'blocks\.(\d+)\.op\.(.+)', r'layers.\1.ssm.\2'),
        (r'blocks\.(\d+)\.norm2\.(weight|bias)', r'layers.\1.ffn_norm.\2'),
        (r'blocks\.(\d+)\.mlp\.fc1\.(weight|bias)', r'layers.\1.ffn_in.\2'),
        (r'blocks\.(\d+)\.mlp\.fc2\.(weight|bias)', r'layers.\1.ffn_out.\2'),
        (r'norm\.(weight|bias)', r'final_norm.\1'),
    )
    OUT_NORM = 'outnorm'
    FINAL_NORM = 'norm'
    FORMAT = VMAMBA

    hierarchical = True

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny-s1l8',
        img_size: Union[int, tuple[int, int]] = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        directions: Sequence[str] = DIRECTIONS['cross'],
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
        self.arch = arch
        self.depths = arch['depths']
        self.stage_dims = tuple(
            arch['embed_dims'] * 2**i for i in range(len(self.depths))
        )
        self.layer_dims = tuple(
            dims
            for dims, depth in zip(self.stage_dims, self.depths)
            for _ in range(depth)
        )
        self.embed_dims = self.stage_dims[-1]
        self.directions = check_directions(directions)
        check_number('drop_rate', drop_rate, 0, 1)

        self.patch_embed = VMambaStem(
            in_channels,
            self.stage_dims[0],
            patch_size,
            arch['patch_embed'],
            img_size,
        )
        rates = self._drop_path_rates(drop_path_rate)
        mixer_cfg = dict(
            d_state=arch['d_state'],
            expand=arch['ssm_ratio'],
            conv_bias=arch['conv_bias'],
            gated=arch['gated'],
        )
        make_block = partial(
            VMambaBlock,
            directions=self.directions,
            mixer_cfg=mixer_cfg,
            mlp_ratio=arch['mlp_ratio'],
            drop_rate=drop_rate,
        )
        blocks = (
            make_block(embed_dims=dims, drop_path_rate=rate)
            for dims, rate in zip(self.layer_dims, rates)
        )
        widths = list(zip(self.stage_dims, self.stage_dims[1:]))
        self.layers = ModuleList(
            ModuleDict(
                dict(
                    blocks=ModuleList(next(blocks) for _ in range(depth)),
                    downsample=build_downsample(
                        arch['downsample'], *widths[stage]
                    )
                    if stage < len(widths)
                    else NoDownsample(),
                )
            )
            for stage, depth in enumerate(self.depths)
        )
        self.norm = nn.LayerNorm(self.embed_dims) if final_norm else None
        self._add_outputs(lambda stage: nn.LayerNorm(self.stage_dims[stage]))
        self._freeze_stages()

    @property
    def num_outputs(self) -> int:
        """int: Number of stages."""
        return len(self.depths)

    @property
    def layout(self) -> dict[str, Any]:
        """dict: See :attr:`MambaBackbone.layout`."""
        # Settings that once could be others stay in it: what was stored with
        # another value is refused.
        return {**self.FORMAT.layout, **super().layout}

    def blocks(self) -> list[VMambaBlock]:
        """See :meth:`MambaStudent.blocks`."""
        return [block for stage in self.layers for block in stage.blocks]

    def _name_for_roles(self, name: str) -> str:
        """Counts blocks over all stages, and names a ViT-like stem so."""
        if self.arch['patch_embed'] == 'v1':
            name = name.replace('patch_embed.0.', 'patch_embed.proj.')
            name = name.replace('patch_embed.2.', 'patch_embed.norm.')
        match = re.match(r'layers\.(\d+)\.blocks\.(\d+)\.', name)
        if match is None:
            return name
        index = sum(self.depths[: int(match[1])]) + int(match[2])
        return f'blocks.{index}.{name[match.end() :]}'

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        Blocks count over all stages; a downsampling has the depth of the
        block before it.

        Args:
            param_name (str): Full parameter name.
            prefix (str): Prefix of this backbone's parameters. Defaults
                to ``''``.

        Returns:
            tuple[int, int]: The depth, 0 for the stem and ``n - 1`` for what
            follows the stages, and the number of depths ``n``.
        """
        depths = self.num_layers + 2
        if not param_name.startswith(prefix):
            return depths - 1, depths
        name = param_name[len(prefix) :]
        if name.startswith('patch_embed'):
            return 0, depths
        match = re.match(r'layers\.(\d+)\.(?:blocks\.(\d+))?', name)
        if match is None:
            return depths - 1, depths
        stage, block = match.groups()
        before = sum(self.depths[: int(stage)])
        if block is None:
            return before + self.depths[int(stage)], depths
        return before + int(block) + 1, depths

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extracts features.

        Args:
            x (Tensor): Images (B, C, H, W), any H and W.

        Returns:
            tuple[Tensor, ...]: One tensor per ``out_indices``, shaped as
            ``out_type`` says, on the grid of its stage.

        Raises:
            ValueError: If an image is too small for the stages.
        """
        fix_size(x)
        x, grid = self.patch_embed(x)
        outs = []
        for index, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = self._run_block(block, x, grid)
            if index in self.out_indices:
                outs.append(self._output(index, x, grid))
            x, grid = stage.downsample(x, grid)
        return tuple(outs)
