# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The teacher's decision as a label (DeiT, arXiv 2012.12877)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.contract.sites import LOGITS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss, check_same_classes
from .base import DistillMethod, Reading


@MODELS.register_module()
class HardLabelLoss(DistillLoss):
    """Cross entropy with the class that the teacher scores highest.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Computes the loss of class scores (B, K)."""
        check_same_classes(student, teacher)
        labels = teacher.argmax(dim=1)
        return self.loss_weight * F.cross_entropy(student.float(), labels)


@TASK_UTILS.register_module()
class HardLabel(DistillMethod):
    """DeiT's hard distillation, without its distillation token.

    With ``in_alpha=True`` and ``alpha=0.5`` the two losses have DeiT's
    weights, one half each.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'hard_label'

    def __init__(self, loss_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_weight = loss_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(
            type='transmamba.HardLabelLoss', loss_weight=self.loss_weight
        )

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(student=self.student(LOGITS), teacher=self.teacher(LOGITS))
