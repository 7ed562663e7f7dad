# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Soft logits (Hinton et al., arXiv 1503.02531)."""

from typing import Any

from transmamba_mm.checks import check_number, check_positive
from transmamba_mm.contract.sites import LOGITS
from transmamba_mm.registry import TASK_UTILS

from .base import DistillMethod, Reading


@TASK_UTILS.register_module()
class LogitsKD(DistillMethod):
    """KL divergence between softened class scores, times ``tau ** 2``.

    Args:
        tau (float): Temperature. Defaults to 2.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'kl'

    def __init__(
        self, tau: float = 2.0, loss_weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.tau = check_positive('tau', tau)
        self.loss_weight = check_number('loss_weight', loss_weight, 0)

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(
            type='mmrazor.KLDivergence',
            tau=self.tau,
            loss_weight=self.loss_weight,
        )

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(preds_S=self.student(LOGITS), preds_T=self.teacher(LOGITS))
