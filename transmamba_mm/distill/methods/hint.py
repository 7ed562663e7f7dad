# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The teacher's last features as a hint.

As in FitNets (arXiv 1412.6550) a learned regressor, here a linear one, stands
between; the final patch tokens alone are what GTR (arXiv 2609.26590)
regresses. Where the student keeps the regressor, in front of a head as wide
as the teacher's, its features get the teacher's width for good (Lift, arXiv
2511.15572).
"""

from typing import Any

from transmamba_mm.checks import check_bool
from transmamba_mm.contract import TokenRecord
from transmamba_mm.contract.sites import LAYERS, LIFTED, TOKENS
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
        if tokens.shape != target.tokens.shape:
            raise ValueError(
                f"the student's tokens have {tokens.shape[-1]} channels, the "
                f"teacher's {target.tokens.shape[-1]}: set out_channels of "
                f"the student's neck to the teacher's width"
            )
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
        lifted (bool): Whether the map is the student's own neck, which it
            keeps, see :attr:`~transmamba_mm.contract.Student.lift`. Defaults
            to False, a map that serves training alone.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.

    Raises:
        ValueError: If ``lifted`` tokens are to be without norm.
    """

    NAME = 'hint'

    def __init__(
        self,
        normalised: bool = True,
        lifted: bool = False,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if lifted and not normalised:
            raise ValueError(
                'the neck reads tokens after the final norm: lifted=True '
                'needs normalised=True'
            )
        self.site = TOKENS if normalised else LAYERS
        self.lifted = check_bool('lifted', lifted)
        self.loss_weight = loss_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(type='transmamba.HintLoss', loss_weight=self.loss_weight)

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        target = self.teacher(self.site)
        if self.lifted:
            return dict(student=self.student(LIFTED), teacher=target)
        projection = dict(
            type='transmamba.LayerProjection',
            only_last=True,
            always=True,
            **self.towers(),
        )
        return dict(
            student=self.student(self.site, **projection), teacher=target
        )
