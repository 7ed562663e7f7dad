# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Soft logits, plain and standardised.

Plain: Hinton et al., arXiv 1503.02531. Standardised: Sun et al., CVPR 2024,
arXiv 2403.01427; a student need not match the range and variance of the
teacher's scores, only their relations, so both are z-scored over the classes
before they are softened.
"""

from typing import Any, ClassVar

from mmrazor.models.losses import KLDivergence
from torch import Tensor

from transmamba_mm.checks import check_number, check_positive
from transmamba_mm.contract.sites import LOGITS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import check_same_classes
from .base import DistillMethod, Reading


def _standardised(logits: Tensor) -> Tensor:
    """Class scores (B, K) with mean 0 and deviation 1 over the classes."""
    logits = logits.float()
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + 1e-7)


@MODELS.register_module()
class StandardisedKLDivergence(KLDivergence):
    """``mmrazor.KLDivergence`` between z-scores."""

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Computes the loss of class scores (B, K)."""
        check_same_classes(preds_S, preds_T)
        return super().forward(_standardised(preds_S), _standardised(preds_T))


@TASK_UTILS.register_module()
class LogitsKD(DistillMethod):
    """KL divergence between softened class scores, times ``tau ** 2``.

    Args:
        tau (float): Temperature. Defaults to 2.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'kl'
    LOSS: ClassVar[str] = 'mmrazor.KLDivergence'

    def __init__(
        self, tau: float = 2.0, loss_weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.tau = check_positive('tau', tau)
        self.loss_weight = check_number('loss_weight', loss_weight, 0)

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(type=self.LOSS, tau=self.tau, loss_weight=self.loss_weight)

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(preds_S=self.student(LOGITS), preds_T=self.teacher(LOGITS))


@TASK_UTILS.register_module()
class StandardisedLogitsKD(LogitsKD):
    """:class:`LogitsKD` of which only the relations of the scores count."""

    NAME = 'standardised_kl'
    LOSS = 'transmamba.StandardisedKLDivergence'
