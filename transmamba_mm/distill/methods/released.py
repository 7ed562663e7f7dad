# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The loss in the code that TransMamba's authors released.

Source: github.com/chen-xw/TransMamba-main, ``losses.py``. It is not the
paper's: no directions, no cosine, no adaptive weights. Each layer's mean
token predicts the teacher's final class token by a cross entropy over the
channels, layer i with weight i and the last features with weight 120.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.checks import check_number, check_positive
from transmamba_mm.contract import TokenRecord
from transmamba_mm.contract.sites import LAYERS, TOKENS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss
from .base import DistillMethod, Reading


@MODELS.register_module()
class ReleasedLoss(DistillLoss):
    """Cross entropy over the channels, of pooled layers and final features.

    Where the student is narrower it is compared with the teacher's first
    channels.

    Args:
        tau (float): Temperature. Defaults to 2.
        final_weight (float): Weight of the final features. Defaults to 120.
        loss_weight (float): Factor of the loss. Defaults to 1.
    """

    def __init__(
        self,
        tau: float = 2.0,
        final_weight: float = 120.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.tau = check_positive('tau', tau)
        self.final_weight = check_number('final_weight', final_weight, 0)

    def forward(
        self,
        layers: list[TokenRecord],
        final: list[TokenRecord],
        teacher: list[TokenRecord],
    ) -> Tensor:
        """Computes the loss.

        Args:
            layers (list[TokenRecord]): The student's layers (B, L, C).
            final (list[TokenRecord]): Its tokens after the final norm.
            teacher (list[TokenRecord]): The teacher's, with a class token.

        Returns:
            Tensor: Scalar.

        Raises:
            ValueError: If the teacher has no class token.
        """
        classes = teacher[-1].classes
        if not classes.shape[1]:
            raise ValueError(
                'the released loss compares with the class token of the '
                'teacher, which has none'
            )
        target = classes[:, 0]
        weights = [*range(1, len(layers) + 1), self.final_weight]
        terms = [
            weight * self._cross_entropy(record.tokens.mean(1), target)
            for weight, record in zip(weights, [*layers, final[-1]])
        ]
        return self.loss_weight * torch.stack(terms).sum()

    def _cross_entropy(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of features (B, C_s) with features (B, C_t)."""
        width = min(student.shape[-1], teacher.shape[-1])
        wanted = F.softmax(teacher[:, :width].float() / self.tau, dim=-1)
        found = F.log_softmax(student[:, :width].float() / self.tau, dim=-1)
        return -(wanted * found).sum(-1).mean()


@TASK_UTILS.register_module()
class ReleasedTransMamba(DistillMethod):
    """What the released code minimises beside the task loss.

    Args:
        tau (float): See :class:`ReleasedLoss`. Defaults to 2.
        final_weight (float): See there. Defaults to 120.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'released'

    def __init__(
        self,
        tau: float = 2.0,
        final_weight: float = 120.0,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._loss = dict(
            type='transmamba.ReleasedLoss',
            tau=tau,
            final_weight=final_weight,
            loss_weight=loss_weight,
        )

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return self._loss

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(
            layers=self.student(LAYERS),
            final=self.student(TOKENS),
            teacher=self.teacher(TOKENS),
        )
