# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The teacher's last features as a hint.

As in FitNets (arXiv 1412.6550) a learned regressor, here a linear one, stands
between; the final patch tokens alone are what GTR (arXiv 2609.26590)
regresses.
"""

from typing import Any

from transmamba_mm.contract import TokenRecord
from transmamba_mm.contract.sites import LAYERS, TOKENS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss
from .base import DistillMethod, Reading


@MODELS.register_module()
class HintLoss(DistillLoss):
    """Mean squared error of patch tokens.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.
    """

    def forward(self, student: list[TokenRecord], teacher: list[TokenRecord]):
        """Computes the loss (Tensor, scalar) of the last record of each."""
        target = teacher[-1]
        tokens = student[-1].resized(target.grid).tokens.float()
        error = (tokens - target.tokens.detach().float()).square().mean()
        return self.loss_weight * error


@TASK_UTILS.register_module()
class LastLayerHint(DistillMethod):
    """Regresses the teacher's last tokens by a linear map of the student's.

    Class tokens are left out; tokens of a student on another grid are
    interpolated.

    Args:
        normalised (bool): Whether the tokens are those after the final
            norms; else they are the residual stream before them. Defaults
            to True.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'hint'

    def __init__(
        self,
        normalised: bool = True,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.site = TOKENS if normalised else LAYERS
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
            student=self.student(self.site, **projection),
            teacher=self.teacher(self.site),
        )
