# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What distillation losses of this package have in common."""

from collections.abc import Mapping
from typing import Any, Optional

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from transmamba_mm.checks import check_number
from transmamba_mm.contract import (
    KeptChannels,
    Pair,
    PairAware,
    TokenRecord,
)
from transmamba_mm.contract.layer_map import LayerMap, resolve_layer_map
from transmamba_mm.registry import MODELS


class DistillLoss(nn.Module):
    """A loss that algorithms and monitors know more of than its value.

    Args:
        loss_weight (float): Factor of the loss, at least 0. Defaults to 1.

    Attributes:
        alpha_weighted (bool): Whether
            :class:`~transmamba_mm.distill.TransMambaDistill` weighs it by
            ``1 - alpha`` and the task loss by ``alpha``. Defaults to False:
            it counts with its own weight.
    """

    alpha_weighted = False

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = check_number('loss_weight', loss_weight, 0)

    def statistics(self) -> dict[str, Tensor]:
        """Scalars of the last call for the log."""
        return {}

    def layer_statistics(self) -> dict[str, dict[str, dict[int, Tensor]]]:
        """By kind and direction, one scalar for each of some layers."""
        return {}


def check_same_classes(student: Tensor, teacher: Tensor) -> None:
    """Complains of class scores (B, K) that are not of the same classes.

    Raises:
        ValueError: If the numbers of classes differ.
    """
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f'the student scores {student.shape[1]} classes, the teacher '
            f'{teacher.shape[1]}: their heads must be of the same classes'
        )


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error in units of the teacher's variance.

    The variance is that of each channel over batch and tokens, averaged over
    the channels; under data-parallel training it is the global batch's. A
    student that gives the mean token everywhere has a loss of 1.

    Args:
        student (Tensor): (B, L, C).
        teacher (Tensor): (B, L, C), taken as constant.

    Returns:
        Tensor: Scalar, in float32.
    """
    target = teacher.detach().float()
    flat = target.flatten(0, -2)
    moments = torch.stack([flat.mean(0), flat.square().mean(0)])
    all_reduce(moments, op='mean')  # no-op in one process
    variance = (moments[1] - moments[0].square()).mean()
    # Below this it is rounding.
    least = (1e-6 * moments[1].mean()).clamp(min=1e-12)
    error = (student.float() - target).square().mean()
    return error / torch.maximum(variance, least)


class LayerPairLoss(DistillLoss, PairAware):
    """A loss of pairs of layers, averaged over the pairs.

    Args:
        layer_map (str | Sequence[int | None]): Which teacher layer each
            student layer is paired with, see
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        loss_weight (float): Factor of the loss. Defaults to 1.
        student_backbone (str, optional): Name of the student's module, for
            models that hold several. Defaults to None, the only one.
        teacher_backbone (str, optional): Likewise of the teacher's.

    Raises:
        ValueError: If the layer map does not fit the pair.
    """

    def __init__(
        self,
        layer_map: LayerMap = 'uniform',
        loss_weight: float = 1.0,
        student_backbone: Optional[str] = None,
        teacher_backbone: Optional[str] = None,
    ) -> None:
        super().__init__(loss_weight)
        self.layer_map = layer_map
        self.student_backbone = student_backbone
        self.teacher_backbone = teacher_backbone
        self.pairs: dict[int, int] = {}
        self._errors: dict[int, Tensor] = {}

    def prepare(self, pair: Pair) -> None:
        """Finds out which layers are paired."""
        student = pair.student(self.student_backbone).backbone
        teacher = pair.teacher(self.teacher_backbone)
        layers = resolve_layer_map(
            self.layer_map, student.layer_dims, teacher.layer_dims
        )
        self.pairs = {
            layer: source
            for layer, source in enumerate(layers)
            if source is not None
        }
        if not self.pairs:
            raise ValueError('layer_map pairs no layer with any other')

    def _average(self, errors: Mapping[int, Tensor]) -> Tensor:
        """The loss, of the errors by student layer."""
        if not errors:
            raise RuntimeError(
                f'{type(self).__name__} does not know its pair: use it inside '
                f'transmamba.TransMambaDistill'
            )
        self._errors = {key: error.detach() for key, error in errors.items()}
        return self.loss_weight * torch.stack(list(errors.values())).mean()

    def layer_statistics(self) -> dict[str, dict[str, dict[int, Tensor]]]:
        """See :meth:`DistillLoss.layer_statistics`."""
        return {'errors': {'all': self._errors}} if self._errors else {}


class ChannelPairLoss(LayerPairLoss):
    """A loss of pairs of layers, channel by channel.

    A narrower student is compared with those channels of the teacher that
    weight subcloning gave it.

    Args:
        **kwargs: See :class:`LayerPairLoss`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kept = KeptChannels(self.student_backbone, self.teacher_backbone)

    def prepare(self, pair: Pair) -> None:
        """See :meth:`LayerPairLoss.prepare`."""
        super().prepare(pair)
        ours = pair.student(self.student_backbone).backbone.layer_dims
        theirs = pair.teacher(self.teacher_backbone).layer_dims
        self.kept.expect(
            ours[layer]
            for layer, source in self.pairs.items()
            if ours[layer] < theirs[source]
        )


@MODELS.register_module()
class LayerMatchLoss(ChannelPairLoss):
    """:func:`normalised_mse` of the patch tokens of paired layers.

    Args:
        **kwargs: See :class:`LayerPairLoss`.
    """

    def forward(
        self, student: list[TokenRecord], teacher: list[TokenRecord]
    ) -> Tensor:
        """Computes the loss.

        Args:
            student (list[TokenRecord]): Records (B, L, C) of all layers.
                Those on another grid are interpolated.
            teacher (list[TokenRecord]): Records of all layers.

        Returns:
            Tensor: Scalar.
        """
        errors = {}
        for layer, source in self.pairs.items():
            target = teacher[source]
            tokens = student[layer].resized(target.grid).tokens
            target = self.kept.select(target.tokens, tokens.shape[-1])
            errors[layer] = normalised_mse(tokens, target)
        return self._average(errors)
