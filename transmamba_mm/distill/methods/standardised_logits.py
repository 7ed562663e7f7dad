# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Logit standardisation (Sun et al., CVPR 2024, arXiv 2403.01427).

A student need not match the range and variance of the teacher's scores, only
their relations: both are z-scored over the classes before they are softened.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.checks import check_positive
from transmamba_mm.contract.sites import LOGITS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss, check_same_classes
from .base import DistillMethod, Reading


def _standardised(logits: Tensor) -> Tensor:
    """Class scores (B, K) with mean 0 and deviation 1 over the classes."""
    logits = logits.float()
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + 1e-7)


@MODELS.register_module()
class StandardisedKLDivergence(DistillLoss):
    """KL divergence between softened z-scores, times ``tau ** 2``.

    Args:
        tau (float): Temperature. Defaults to 2.
        loss_weight (float): Factor of the loss. Defaults to 1.
    """

    def __init__(self, tau: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.tau = check_positive('tau', tau)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Computes the loss of class scores (B, K)."""
        check_same_classes(student, teacher)
        loss = F.kl_div(
            F.log_softmax(_standardised(student) / self.tau, dim=1),
            F.log_softmax(_standardised(teacher) / self.tau, dim=1),
            reduction='batchmean',
            log_target=True,
        )
        return self.loss_weight * self.tau**2 * loss


@TASK_UTILS.register_module()
class StandardisedLogitsKD(DistillMethod):
    """Soft logits of which only the relations count.

    Args:
        tau (float): Temperature. Defaults to 2.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'standardised_kl'

    def __init__(
        self, tau: float = 2.0, loss_weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.tau = tau
        self.loss_weight = loss_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(
            type='transmamba.StandardisedKLDivergence',
            tau=self.tau,
            loss_weight=self.loss_weight,
        )

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(student=self.student(LOGITS), teacher=self.teacher(LOGITS))
