# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Soft targets of a retrieval teacher: which texts resemble which videos.

The idea is TeachCLIP's (Tian et al., CVPR 2024,
https://github.com/ruc-aimc-lab/TeachCLIP): similarities of texts with videos
(coarse) and with single frames (fine) are taught, not features, so teacher
and student may embed in spaces of their own. There the frames' similarities
teach the weights of a pooling; here, those of the student's own frames.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.checks import check_number, check_positive
from transmamba_mm.contract import Embeddings
from transmamba_mm.contract.gather import gathered
from transmamba_mm.contract.records import scores
from transmamba_mm.contract.sites import EMBEDDINGS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss
from .base import DistillMethod, Reading


def _divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """KL divergence of softened scores (N, K), times ``tau ** 2``."""
    ours, theirs = (
        F.log_softmax(each / tau, dim=1) for each in (student, teacher)
    )
    found = F.kl_div(ours, theirs, reduction='batchmean', log_target=True)
    return tau**2 * found


def _batch_scores(record: Embeddings) -> Tensor:
    """Scores of all texts with all videos of all processes."""
    return scores(
        gathered(record.texts), gathered(record.videos), record.scale
    )


def _frame_scores(record: Embeddings) -> Tensor:
    """Scores (B, T) of each text with the frames of its video."""
    with torch.autocast(record.frames.device.type, enabled=False):
        texts = record.texts.float().unsqueeze(-1)
        found = record.scale.float() * (record.frames.float() @ texts)
    # A finite number: a divergence would multiply infinities by zero.
    return found.squeeze(-1).masked_fill(~record.mask, -1e4)


@MODELS.register_module()
class SimilarityLoss(DistillLoss):
    """Divergence of similarities within a batch.

    The mean of both directions: over the videos for each text, over the
    texts for each video. Batches of several processes count as one.

    Args:
        tau (float): Temperature, on top of each model's own. Defaults to 1.
        frame_weight (float): Weight of the divergence over the frames of
            each text's own video, beside it. Defaults to 1.
        loss_weight (float): Factor of the loss. Defaults to 1.
    """

    def __init__(
        self,
        tau: float = 1.0,
        frame_weight: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.tau = check_positive('tau', tau)
        self.frame_weight = check_number('frame_weight', frame_weight, 0)

    def forward(self, student: Embeddings, teacher: Embeddings) -> Tensor:
        """Computes the loss.

        Args:
            student (Embeddings): Of a text for each video.
            teacher (Embeddings): Of the same, in any width.

        Returns:
            Tensor: Scalar.

        Raises:
            ValueError: If there are several texts for a video, or frames are
                to be compared that one side does not have.
        """
        if len(student.texts) != len(student.videos):
            raise ValueError(
                f'there are {len(student.texts)} texts of '
                f'{len(student.videos)} videos: training wants one of each'
            )
        ours, theirs = _batch_scores(student), _batch_scores(teacher)
        loss = 0.5 * (
            _divergence(ours, theirs, self.tau)
            + _divergence(ours.mT, theirs.mT, self.tau)
        )
        if self.frame_weight:
            pair = dict(student=student, teacher=teacher)
            frames = {k: _num_frames(x) for k, x in pair.items()}
            if None in frames.values() or len({*frames.values()}) > 1:
                raise ValueError(
                    f'the embeddings have {frames} frames, which cannot be '
                    f'compared: set frame_weight=0, or make both embed each '
                    f'frame (keep_temporal=True of VideoMamba)'
                )
            ours, theirs = _frame_scores(student), _frame_scores(teacher)
            found = _divergence(ours, theirs, self.tau)
            loss = loss + self.frame_weight * found
        return self.loss_weight * loss


def _num_frames(record: Embeddings) -> Any:
    return None if record.frames is None else record.frames.shape[1]


@TASK_UTILS.register_module()
class SimilarityDistill(DistillMethod):
    """Matches similarities of texts with videos, and with their frames.

    Args:
        tau (float): See :class:`SimilarityLoss`. Defaults to 1.
        frame_weight (float): See :class:`SimilarityLoss`. Defaults to 1.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'similarity'

    def __init__(
        self,
        tau: float = 1.0,
        frame_weight: float = 1.0,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = dict(
            tau=tau, frame_weight=frame_weight, loss_weight=loss_weight
        )

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(type='transmamba.SimilarityLoss', **self.options)

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(
            student=self.student(EMBEDDINGS),
            teacher=self.teacher(EMBEDDINGS),
        )
