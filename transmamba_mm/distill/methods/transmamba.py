# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Adaptive bidirectional distillation (TransMamba, arXiv 2502.15130)."""

from collections.abc import Sequence
from typing import Any, Union

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor
from torch.autograd.function import once_differentiable

from transmamba_mm.checks import check_positive, is_int, is_sequence
from transmamba_mm.contract import TapRecord
from transmamba_mm.ops import reorder
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss
from .base import DistillMethod, Reading

# Below this a ratio of similarities says nothing: untrained layers have
# similarities around zero, of either sign.
_MIN_SIMILARITY = 0.05


@MODELS.register_module()
class AdaptiveBidirectionalDistill(DistillLoss):
    r"""Pulls every layer and scan direction towards the teacher's tokens.

    For layer :math:`l` and direction :math:`m`,
    :math:`s_{l,m}` is the mean cosine between the calibrated tap and the
    teacher's patch tokens permuted into the direction's scan order. Per
    direction, :math:`L_m = \sum_l w_{l,m} (1 - s_{l,m})` with detached
    weights that sum to one over the layers; the loss is :math:`\sum_m L_m`.
    Under data-parallel training the weights come from the similarities of
    the global batch, so the gradient equals that of one process.

    :class:`~transmamba_mm.distill.TransMambaDistill` weighs this loss by
    ``1 - alpha``.

    Args:
        tau (float): Temperature of the weights; they are practically uniform
            above 1. Defaults to 0.1.
        weighting (str): ``'softmax'``, :math:`softmax_l(-s/\tau)`;
            ``'paper_ratio'``, a reading of Eq. 5,
            :math:`softmax_l(\sum_j s_j / (\tau s_l))` with similarities
            clamped from below; ``'uniform'``. Defaults to ``'softmax'``.
        teacher_layers (str | Sequence[int]): Target of each student layer:
            ``'last'`` (the paper), ``'uniform'`` (the same relative depth)
            or one index into the recorded teacher layers per student layer.
            Defaults to ``'last'``.
        loss_weight (float): Factor of the loss. Defaults to 1.

    Attributes:
        similarities (dict[str, Tensor]): Direction to (layers,), of the last
            call.
        weights (dict[str, Tensor]): Likewise.

    Raises:
        ValueError: If an option is not supported.
    """

    # TransMambaDistill multiplies such losses by 1 - alpha.
    alpha_weighted = True

    WEIGHTINGS = ('softmax', 'paper_ratio', 'uniform')

    def __init__(
        self,
        tau: float = 0.1,
        weighting: str = 'softmax',
        teacher_layers: Union[str, Sequence[int]] = 'last',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        check_positive('tau', tau)
        if weighting not in self.WEIGHTINGS:
            raise ValueError(
                f'weighting must be one of {", ".join(self.WEIGHTINGS)}, got '
                f'{weighting!r}'
            )
        if teacher_layers not in ('last', 'uniform') and not (
            is_sequence(teacher_layers) and all(map(is_int, teacher_layers))
        ):
            raise ValueError(
                f"teacher_layers must be 'last', 'uniform' or a list of "
                f'integers, got {teacher_layers!r}'
            )
        self.tau = tau
        self.weighting = weighting
        self.teacher_layers = teacher_layers
        self.similarities: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def forward(
        self,
        student: list[TapRecord],
        teacher: Union[Tensor, list[Tensor]],
    ) -> Tensor:
        """Computes the loss.

        Args:
            student (list[TapRecord]): Calibrated taps (B, L, C) of all
                layers and directions.
            teacher (Tensor | list[Tensor]): Patch tokens (B, L, C) in raster
                order, one tensor or one per recorded layer, the last layer
                last.

        Returns:
            Tensor: Scalar.

        Raises:
            ValueError: If tokens cannot be aligned or ``teacher_layers``
                does not fit what was recorded.
        """
        teacher = teacher if isinstance(teacher, list) else [teacher]
        num_layers = 1 + max(record.layer for record in student)
        targets = self._targets(num_layers, len(teacher))
        unit = {
            index: F.normalize(teacher[index].detach().float(), dim=-1)
            for index in set(targets)
        }
        permuted: dict[tuple, Tensor] = {}
        by_direction: dict[str, list[Tensor]] = {}
        for record in student:
            index = targets[record.layer]
            key = (index, record.direction, record.grid)
            if key not in permuted:
                self._check_alignment(record, unit[index])
                permuted[key] = reorder(unit[index], record.order())
            cosine = _cosine_to_unit(record.tokens, permuted[key])
            by_direction.setdefault(record.direction, []).append(cosine)
        self.similarities, self.weights = {}, {}
        total = 0.0
        for direction, values in by_direction.items():
            similarity = torch.stack(values)
            # Those of the global batch, see the class; no-op in one process.
            shared = similarity.detach().clone()
            all_reduce(shared, op='mean')
            weight = self._weigh(shared)
            total = total + (weight * (1 - similarity)).sum()
            self.similarities[direction] = shared
            self.weights[direction] = weight
        return self.loss_weight * total

    def _targets(self, num_layers: int, num_teacher: int) -> list[int]:
        """Index of the recorded teacher layer for each student layer."""
        if self.teacher_layers == 'last':
            return [num_teacher - 1] * num_layers
        if self.teacher_layers == 'uniform':
            if num_teacher == 1:
                raise ValueError(
                    "teacher_layers='uniform' needs all teacher layers: "
                    "record them with layers='all' of transmamba.PatchTokens"
                )
            step = num_teacher / num_layers
            return [
                max(int((i + 1) * step + 0.5) - 1, 0)
                for i in range(num_layers)
            ]
        targets = [int(index) for index in self.teacher_layers]
        if len(targets) != num_layers or not all(
            -num_teacher <= index < num_teacher for index in targets
        ):
            raise ValueError(
                f'teacher_layers {targets} needs one index below '
                f'{num_teacher} (recorded teacher layers) for each of the '
                f'{num_layers} student layers'
            )
        return [index % num_teacher for index in targets]

    @staticmethod
    def _check_alignment(record: TapRecord, target: Tensor) -> None:
        if record.tokens.shape[:2] != target.shape[:2]:
            grid = 'x'.join(map(str, record.grid))
            raise ValueError(
                f'student layer {record.layer} has {record.tokens.shape[1]} '
                f'tokens (grid {grid}), the teacher has {target.shape[1]} '
                f'patch tokens: they cannot be aligned. Record the teacher '
                f'with transmamba.PatchTokens (it drops class tokens); if '
                f"the grids differ, set FeatureCalibration's grid=(h, w) to "
                f"the teacher's"
            )
        if record.tokens.shape[2] != target.shape[2]:
            raise ValueError(
                f'calibrated student tokens have {record.tokens.shape[2]} '
                f'channels, the teacher {target.shape[2]}: set '
                f"FeatureCalibration's out_channels to the teacher's width"
            )

    def _weigh(self, similarity: Tensor) -> Tensor:
        """Weights over the layers (layers,), from detached similarities."""
        if self.weighting == 'uniform':
            return torch.full_like(similarity, 1 / similarity.numel())
        if self.weighting == 'softmax':
            return torch.softmax(-similarity / self.tau, dim=0)
        clamped = similarity.clamp(min=_MIN_SIMILARITY)
        return torch.softmax(clamped.sum() / (self.tau * clamped), dim=0)

    def statistics(self) -> dict[str, Tensor]:
        """Scalars of the last call for the log, over all directions."""
        similarity = torch.cat(list(self.similarities.values()))
        weight = torch.cat(list(self.weights.values()))
        return dict(
            sim_min=similarity.min(),
            sim_max=similarity.max(),
            w_max=weight.max(),
        )

    def layer_statistics(self) -> dict[str, dict[str, dict[int, Tensor]]]:
        """See :meth:`DistillLoss.layer_statistics`."""
        return {
            kind: {name: dict(enumerate(x)) for name, x in values.items()}
            for kind, values in (
                ('similarities', self.similarities),
                ('weights', self.weights),
            )
        }


class _CosineToUnit(torch.autograd.Function):
    """Mean cosine to unit vectors; plain autograd makes five more passes."""

    @staticmethod
    def forward(ctx, tokens: Tensor, unit: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
        scale = scale.clamp_(min=1e-8).reciprocal_()
        cosine = (tokens * unit).sum(-1, keepdim=True).mul_(scale)
        ctx.save_for_backward(tokens, unit, scale, cosine)
        return cosine.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        tokens, unit, scale, cosine = ctx.saved_tensors
        # d cos / d x = (t - cos * x / |x|) / |x|
        scale = scale * (grad / cosine.numel())
        result = unit * scale
        scale = scale.mul_(cosine).mul_(ctx.saved_tensors[2])
        return result.addcmul_(tokens, scale, value=-1), None


def _cosine_to_unit(tokens: Tensor, unit: Tensor) -> Tensor:
    """Mean cosine over batch and tokens, in float32, to unit vectors."""
    return _CosineToUnit.apply(tokens.float(), unit)


@TASK_UTILS.register_module()
class AdaptiveBidirectional(DistillMethod):
    """The paper's stage two: every layer and direction, the last tokens.

    Args:
        tau (float): See :class:`AdaptiveBidirectionalDistill`. Defaults to
            0.1.
        weighting (str): See there. Defaults to ``'softmax'``.
        teacher_layers (str | Sequence[int]): See there. Defaults to
            ``'last'``, the paper's.
        tap (str): See :class:`~transmamba_mm.distill.DirectionTapsRecorder`.
            Defaults to ``'out'``.
        directions (Sequence[str], optional): Scan directions. Defaults to
            None, the student's.
        shared (bool): See :class:`~transmamba_mm.distill.FeatureCalibration`.
            Defaults to False.
        grid (tuple[int, ...], optional): See there. Defaults to None.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'transmamba'
    IN_ALPHA = True

    def __init__(
        self,
        tau: float = 0.1,
        weighting: str = 'softmax',
        teacher_layers: Union[str, Sequence[int]] = 'last',
        tap: str = 'out',
        directions: Union[Sequence[str], None] = None,
        shared: bool = False,
        grid: Union[tuple[int, ...], None] = None,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._loss = dict(
            type='transmamba.AdaptiveBidirectionalDistill',
            tau=tau,
            weighting=weighting,
            teacher_layers=teacher_layers,
            loss_weight=loss_weight,
        )
        self.tap = tap
        self.directions = directions
        self.shared = shared
        self.grid = grid

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return self._loss

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        taps = dict(
            type='transmamba.DirectionTaps',
            tap=self.tap,
            directions=self.directions,
            **self.tower(from_student=True),
        )
        last = self._loss['teacher_layers'] == 'last'
        tokens = dict(
            type='transmamba.PatchTokens',
            layers='last' if last else 'all',
            **self.tower(from_student=False),
        )
        calibration = dict(
            type='transmamba.FeatureCalibration',
            directions=self.directions,
            shared=self.shared,
            grid=self.grid,
            tap=self.tap,
            **self.towers(),
        )
        name = 'calibration'
        if self.name != self.NAME:
            name = f'{self.name}_{name}'
        return dict(
            student=Reading(taps, True, calibration, name),
            teacher=Reading(tokens, False),
        )
