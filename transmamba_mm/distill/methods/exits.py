# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Exits in logit space (One-for-All, NeurIPS 2023, arXiv 2310.19444).

Features of other architectures have little in common but what they say of
the classes. So each stage of the student gets an exit, a branch that scores
the classes, and learns the teacher's scores, with the labelled class
strengthened by ``gamma``. The loss is that of github.com/Hao840/OFAKD,
``distillers/ofa.py``, on the exits and on the student's own scores alike;
``gamma = 1`` and ``tau = 1`` are its defaults.

Interpreted: the authors merge patches by learned maps until there are about
7 x 7, ours are averaged, so that an exit takes any grid; class tokens are
left out, the patches' mean is read. Mixed images count as the class that has
the most of them, as in the authors' code.
"""

import math
from itertools import accumulate
from typing import Any, Optional

import torch.nn.functional as F
from mmpretrain.models.backbones.vision_transformer import (
    TransformerEncoderLayer,
)
from mmrazor.models.architectures.connectors.base_connector import (
    BaseConnector,
)
from torch import Tensor, nn

from transmamba_mm.checks import check_int, check_positive
from transmamba_mm.contract import Pair, PairAware, TokenRecord
from transmamba_mm.contract.layer_map import stage_ends, stages_of
from transmamba_mm.contract.sites import LABELS, LAYERS, LOGITS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import DistillLoss, check_same_classes
from .base import DistillMethod, Reading

# Patches at most on each side of what an exit sees.
_SIDE = 7


class LogitExit(nn.Module):
    """Patches of one stage to class scores.

    Args:
        dims (int): Width of the patches.
        inner_dims (int): Width of the branch.
        depth (int): Transformer layers in it.
        num_classes (int): Classes.
    """

    def __init__(
        self, dims: int, inner_dims: int, depth: int, num_classes: int
    ) -> None:
        super().__init__()
        self.widen = nn.Identity()
        if dims != inner_dims:
            self.widen = nn.Linear(dims, inner_dims)
        self.layers = nn.Sequential(
            *(
                TransformerEncoderLayer(
                    inner_dims, math.gcd(4, inner_dims), 4 * inner_dims
                )
                for _ in range(depth)
            )
        )
        self.fc = nn.Linear(inner_dims, num_classes)

    def forward(self, record: TokenRecord) -> Tensor:
        """Class scores (B, K) of patches (B, L, C)."""
        maps = record.tokens.mT.unflatten(2, record.grid)
        pool = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
        sides = [min(side, _SIDE) for side in record.grid]
        tokens = pool[len(sides)](maps, sides).flatten(2).mT
        return self.fc(self.layers(self.widen(tokens)).mean(1))


@MODELS.register_module()
class LogitExits(BaseConnector, PairAware):
    """A :class:`LogitExit` after each stage of the student.

    Those of earlier stages are deeper.

    Args:
        stages (int): Equal parts of the depth that count as stages of a
            student that has none. Defaults to 4.
        student_backbone (str, optional): Name of the student's module, for
            models that hold several. Defaults to None, the only one.
        init_cfg (dict, optional): mmengine initialisation.
    """

    def __init__(
        self,
        stages: int = 4,
        student_backbone: Optional[str] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.stages = check_int('stages', stages)
        self.student_backbone = student_backbone
        self.exits = nn.ModuleDict()

    def prepare(self, pair: Pair) -> None:
        """Builds the exits."""
        student = pair.student(self.student_backbone)
        dims = student.backbone.layer_dims
        sizes = stages_of(dims)
        ends = [end - 1 for end in accumulate(sizes)]
        if len(sizes) == 1:
            ends = stage_ends(len(dims), self.stages)
        for stage, end in enumerate(ends, 1):
            self.exits[str(end)] = LogitExit(
                dims[end],
                dims[-1],
                max(len(ends) - stage, 1),
                student.num_classes,
            )

    def forward_train(self, feature: list[TokenRecord]) -> list[Tensor]:
        """Class scores (B, K) of each exit, of records of all layers."""
        return [each(feature[int(end)]) for end, each in self.exits.items()]


@MODELS.register_module()
class AdaptiveTargetLoss(DistillLoss):
    r"""Cross entropy with the teacher's scores, the true class strengthened.

    With the teacher's probabilities :math:`p` and the labels :math:`y`, one
    for the true class, the target is :math:`(p + y)^\gamma - y`.

    Args:
        gamma (float): Modulation; 1 leaves the teacher's as they are.
            Defaults to 1.
        tau (float): Temperature. Defaults to 1.
        loss_weight (float): Factor of the loss. Defaults to 1.
    """

    def __init__(
        self, gamma: float = 1.0, tau: float = 1.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        self.gamma = check_positive('gamma', gamma)
        self.tau = check_positive('tau', tau)

    def forward(
        self,
        student: Tensor,
        exits: list[Tensor],
        teacher: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Computes the loss.

        Args:
            student (Tensor): Class scores (B, K).
            exits (list[Tensor]): Those of each exit.
            teacher (Tensor): Class scores (B, K).
            labels (Tensor): Classes (B,), or scores (B, K).

        Returns:
            Tensor: Scalar, the sum over the student's scores and the exits'.
        """
        check_same_classes(student, teacher)
        if labels.dim() == 2:
            labels = labels.argmax(dim=1)
        truth = F.one_hot(labels, teacher.shape[1])
        believed = F.softmax(teacher.detach().float() / self.tau, dim=1)
        target = (believed + truth) ** self.gamma - truth
        total = 0.0
        for scores in (student, *exits):
            found = F.log_softmax(scores.float() / self.tau, dim=1)
            total = total - (target * found).sum(dim=1).mean()
        return self.loss_weight * total


@TASK_UTILS.register_module()
class OneForAll(DistillMethod):
    """Lets each stage of the student score the classes, as the teacher does.

    Args:
        gamma (float): See :class:`AdaptiveTargetLoss`. Defaults to 1.
        tau (float): Temperature. Defaults to 1.
        stages (int): See :class:`LogitExits`. Defaults to 4.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'ofa'

    def __init__(
        self,
        gamma: float = 1.0,
        tau: float = 1.0,
        stages: int = 4,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stages = stages
        self._loss = dict(
            type='transmamba.AdaptiveTargetLoss',
            gamma=gamma,
            tau=tau,
            loss_weight=loss_weight,
        )

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return self._loss

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        exits = dict(
            type='transmamba.LogitExits',
            stages=self.stages,
            student_backbone=self.student_backbone,
        )
        return dict(
            student=self.student(LOGITS),
            exits=self.student(LAYERS, **exits),
            teacher=self.teacher(LOGITS),
            labels=self.student(LABELS),
        )
