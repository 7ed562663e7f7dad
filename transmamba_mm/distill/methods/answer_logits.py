# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Soft logits of answers, of which no more than a chunk is ever in memory.

:class:`LogitsKD` of a language model holds (M, V) scores of student and
teacher, and all that becomes of them, for 128,256 tokens V. Here each chunk of
the M tokens is scored, compared and forgotten, and scored again for its
gradient. The loss and its gradient are the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.checks import check_int, check_positive
from transmamba_mm.contract import Answers
from transmamba_mm.contract.sites import ANSWERS
from transmamba_mm.ops.chunks import MAX_SCORES, summed_in_chunks
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss, check_same_classes
from .base import Reading
from .logits import LogitsKD


@MODELS.register_module()
class AnswerLogitsLoss(DistillLoss):
    """KL divergence of answers' tokens, times ``tau ** 2``, their mean.

    Args:
        tau (float): Temperature. Defaults to 2.
        max_scores (int): Scores of a chunk. Defaults to 2 ** 25, which are
            128 MiB of float32.
        loss_weight (float): Factor of the loss. Defaults to 1.
    """

    def __init__(
        self,
        tau: float = 2.0,
        max_scores: int = MAX_SCORES,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.tau = check_positive('tau', tau)
        self.max_scores = check_int('max_scores', max_scores)

    def forward(self, student: Answers, teacher: Answers) -> Tensor:
        """Computes the loss.

        Args:
            student (Answers): Of M tokens.
            teacher (Answers): Of the same.

        Returns:
            Tensor: Scalar, 0 where there is no answer.

        Raises:
            ValueError: If the answers or the vocabularies differ.
        """
        if not student.labels.equal(teacher.labels):
            raise ValueError(
                f'the student reads {len(student.labels)} tokens of answers, '
                f'the teacher {len(teacher.labels)}, or others: give both the '
                f'same max_length, and as many tokens of an image'
            )

        def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
            scores = student.score(ours), teacher.score(theirs)
            check_same_classes(*scores)
            ours, theirs = (
                F.log_softmax(x / self.tau, dim=-1) for x in scores
            )
            return F.kl_div(ours, theirs, reduction='sum', log_target=True)

        with torch.no_grad():
            width = student.score(student.tokens[:1]).shape[-1]
        total = summed_in_chunks(
            divergence,
            student.tokens,
            teacher.tokens,
            width=width,
            max_scores=self.max_scores,
        )
        mean = total / max(len(student.labels), 1)
        return self.loss_weight * self.tau**2 * mean


@TASK_UTILS.register_module()
class AnswerLogitsKD(LogitsKD):
    """:class:`LogitsKD` of a model that answers questions, in chunks.

    Args:
        max_scores (int): See :class:`AnswerLogitsLoss`.
        **kwargs: See :class:`LogitsKD`.
    """

    LOSS = 'transmamba.AnswerLogitsLoss'

    def __init__(self, max_scores: int = MAX_SCORES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_scores = max_scores

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(super().loss(), max_scores=self.max_scores)

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(
            student=self.student(ANSWERS), teacher=self.teacher(ANSWERS)
        )
