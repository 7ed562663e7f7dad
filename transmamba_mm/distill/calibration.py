# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Feature calibration (TransMamba §3.2): student tokens to teacher width."""

from collections.abc import Sequence
from typing import Optional, Union

import torch.nn.functional as F
from mmengine.logging import print_log
from mmrazor.models.architectures.connectors.base_connector import (
    BaseConnector,
)
from torch import Tensor, nn

from transmamba_mm.contract import Pair, PairAware, TapRecord, TeacherError
from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops import linear
from transmamba_mm.registry import MODELS


class _Calibrator(nn.Module):
    """Zero-pads the channels, then Linear, GELU, Linear.

    Zero padding before a Linear selects its first columns, so the padded
    tensor is never built. A student wider than the teacher gets a linear
    reduction in place of the padding.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.reduce = (
            nn.Linear(in_channels, out_channels, bias=False)
            if in_channels > out_channels
            else None
        )
        self.fc1 = nn.Linear(out_channels, out_channels)
        self.fc2 = nn.Linear(out_channels, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.reduce is not None:
            tokens = linear(tokens, self.reduce.weight)
        weight = self.fc1.weight[:, : tokens.shape[-1]]
        hidden = F.gelu(linear(tokens, weight, self.fc1.bias))
        return linear(hidden, self.fc2.weight, self.fc2.bias)


@MODELS.register_module()
class FeatureCalibration(BaseConnector, PairAware):
    """Calibrates every tap to the width of the teacher.

    By default there is one MLP per layer and direction. The sizes may be
    left out when the connector is used inside
    :class:`~transmamba_mm.distill.TransMambaDistill`, which tells it the
    student and the teacher.

    Args:
        in_channels (int | Sequence[int], optional): Width of the taps, one
            number or one per layer. Defaults to None, the student's.
        out_channels (int, optional): Width of the teacher's tokens. Defaults
            to None, the teacher's.
        num_layers (int, optional): Student layers. Defaults to None, the
            student's.
        directions (Sequence[str], optional): Scan directions. Defaults to
            None, the student's.
        shared (bool): Use one MLP for all layers and directions. Defaults to
            False.
        grid (tuple[int, ...], optional): Interpolate taps to this token
            grid first, for students whose grid differs from the teacher's.
            Defaults to None: no interpolation, except that hierarchical
            students, and all where the teacher has an input size of its own,
            get the grid that the teacher has.
        tap (str): Which one it reads, see
            :class:`~transmamba_mm.distill.DirectionTaps`; tells the width of
            the student's. Defaults to ``'out'``.
        student_backbone (str, optional): Name of the student's module, for
            models that hold several. Defaults to None, the only one.
        teacher_backbone (str, optional): Likewise of the teacher's.
        init_cfg (dict, optional): mmengine initialisation.

    Raises:
        ValueError: If sizes are missing or contradict each other.
    """

    def __init__(
        self,
        in_channels: Union[int, Sequence[int], None] = None,
        out_channels: Optional[int] = None,
        num_layers: Optional[int] = None,
        directions: Optional[Sequence[str]] = None,
        shared: bool = False,
        grid: Optional[tuple[int, ...]] = None,
        tap: str = 'out',
        student_backbone: Optional[str] = None,
        teacher_backbone: Optional[str] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_layers = num_layers
        self.directions = directions
        self.shared = shared
        self.grid = tuple(grid) if grid else None
        self.tap = tap
        self.student_backbone = student_backbone
        self.teacher_backbone = teacher_backbone
        #: Of the teacher's tokens in this step, told by the algorithm.
        self.teacher_grid: Optional[Grid] = None
        self._follows_teacher = False
        self.mlps: Optional[nn.ModuleList] = None
        if None not in (in_channels, out_channels, num_layers, directions):
            self._build()

    def prepare(self, pair: Pair) -> None:
        """Fills in the sizes that were left out and builds the MLPs."""
        if self.mlps is not None:
            return
        backbone = pair.student(self.student_backbone).backbone
        if self.in_channels is None and self.tap == 'inner':
            self.in_channels = [x.d_inner for x in backbone.mixers()]
        elif self.in_channels is None:
            self.in_channels = backbone.layer_dims
        if self.num_layers is None:
            self.num_layers = backbone.num_layers
        if self.directions is None:
            self.directions = backbone.directions
        if self.out_channels is None:
            try:
                teacher = pair.teacher(self.teacher_backbone)
            except TeacherError as error:
                raise TeacherError(
                    f'{error}. Or set out_channels of FeatureCalibration, and '
                    f'grid=(h, w) for a hierarchical student'
                ) from error
            self.out_channels = teacher.embed_dims
        size = pair.teacher_input_size(self.teacher_backbone)
        self._follows_teacher = backbone.hierarchical or size is not None
        self._build()

    def _build(self) -> None:
        widths = self.in_channels
        if isinstance(widths, int):
            widths = [widths] * self.num_layers
        if len(widths) != self.num_layers:
            raise ValueError(
                f'in_channels has {len(widths)} widths for num_layers='
                f'{self.num_layers}'
            )
        if max(widths) > self.out_channels:
            print_log(
                f'FeatureCalibration: the student ({max(widths)} channels) '
                f'is wider than the teacher ({self.out_channels}); a linear '
                f'reduction replaces the zero padding',
                logger='current',
            )
        if self.shared:
            if len(set(widths)) > 1 and max(widths) > self.out_channels:
                raise ValueError(
                    'shared=True needs taps no wider than the teacher'
                )
            self.mlps = nn.ModuleList(
                [_Calibrator(max(widths), self.out_channels)]
            )
        else:
            self.mlps = nn.ModuleList(
                _Calibrator(width, self.out_channels)
                for width in widths
                for _ in self.directions
            )

    def forward_train(self, feature: list[TapRecord]) -> list[TapRecord]:
        """Calibrates the taps (B, L, C_s) to (B, L, out_channels)."""
        if self.mlps is None:
            raise ValueError(
                'FeatureCalibration does not know its sizes: give '
                'in_channels, out_channels, num_layers and directions, or '
                'use it inside transmamba.TransMambaDistill'
            )
        grid = self._target_grid(feature)
        return [self._calibrate(record, grid) for record in feature]

    def _target_grid(self, feature: list[TapRecord]) -> Optional[Grid]:
        """The grid to interpolate to, if any."""
        if self.grid is not None or not self._follows_teacher:
            return self.grid
        rank = len(feature[0].grid)
        if self.teacher_grid is None or len(self.teacher_grid) != rank:
            raise ValueError(
                "FeatureCalibration cannot tell the grid of the teacher's "
                'tokens: record them with transmamba.PatchTokens without a '
                'source, or set grid=(h, w)'
            )
        return self.teacher_grid

    def _calibrate(self, record: TapRecord, grid: Optional[Grid]) -> TapRecord:
        if grid is not None:
            record = record.resized(grid)
        index = 0
        if not self.shared:
            place = list(self.directions).index(record.direction)
            index = record.layer * len(self.directions) + place
        mlp = self.mlps[index]
        width = record.tokens.shape[-1]
        if width != mlp.in_channels and not self.shared:
            raise ValueError(
                f'FeatureCalibration expects {mlp.in_channels} channels at '
                f'layer {record.layer}, the tap has {width}; set in_channels '
                f"(with tap='inner' it is expand * d_model)"
            )
        return record.with_tokens(mlp(record.tokens))
