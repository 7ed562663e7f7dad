# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The teacher's last features as a hint (FitNets, arXiv 1412.6550)."""

from typing import Any

from transmamba_mm.contract import TokenRecord
from transmamba_mm.contract.sites import TOKENS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss
from .base import DistillMethod, Reading


@MODELS.register_module()
class HintLoss(DistillLoss):
    """Mean squared error of patch tokens.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, student: list[TokenRecord], teacher: list[TokenRecord]):
        """Computes the loss (Tensor, scalar) of the last record of each."""
        target = teacher[-1]
        tokens = student[-1].resized(target.grid).tokens.float()
        error = (tokens - target.tokens.detach().float()).square().mean()
        return self.loss_weight * error


@TASK_UTILS.register_module()
class LastLayerHint(DistillMethod):
    """Regresses the teacher's final tokens by a linear map of the student's.

    Tokens are those after the final norms, without class tokens; those of a
    student on another grid are interpolated.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'hint'

    def __init__(self, loss_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_weight = loss_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(type='transmamba.HintLoss', loss_weight=self.loss_weight)

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        projection = dict(
            type='transmamba.LayerProjection',
            only_last=True,
            always=True,
            **self.towers(),
        )
        return dict(
            student=self.student(TOKENS, **projection),
            teacher=self.teacher(TOKENS),
        )
