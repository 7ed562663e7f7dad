# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Relations between tokens (ViT-Linearizer, arXiv 2504.00037).

Which tokens resemble which is a map (L, L) whatever the width of the tokens,
so students of any width learn it without a map in between.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.checks import check_int
from transmamba_mm.contract import Pair, TokenRecord
from transmamba_mm.contract.layer_map import LayerMap, stage_ends
from transmamba_mm.contract.sites import LAYERS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import LayerPairLoss
from .base import DistillMethod, Reading


def relation_error(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of the rows of two relation maps.

    Args:
        student (Tensor): Tokens (B, L, C) of any width.
        teacher (Tensor): Tokens (B, L, C) of any width, taken as constant.

    Returns:
        Tensor: Scalar, in float32.
    """
    wanted = _relations(teacher.detach())
    return 1 - (_relations(student) * wanted).sum(-1).mean()


def _relations(tokens: Tensor) -> Tensor:
    """Cosine similarities of tokens (B, L, C), each row of length 1."""
    # Similarities near one lose their differences in half precision.
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens.float(), dim=-1)
        return F.normalize(unit @ unit.mT, dim=-1)


@MODELS.register_module()
class TokenRelationLoss(LayerPairLoss):
    """:func:`relation_error` of some of the paired layers.

    Args:
        stages (int): How many pairs of layers are compared, spread evenly
            over the depth, the last one included. Defaults to 4.
        **kwargs: See :class:`LayerPairLoss`.
    """

    def __init__(self, stages: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stages = check_int('stages', stages)

    def prepare(self, pair: Pair) -> None:
        """Finds out which layers are compared."""
        super().prepare(pair)
        pairs = list(self.pairs.items())
        ends = stage_ends(len(pairs), self.stages)
        self.pairs = dict(pairs[end] for end in ends)

    def forward(
        self, student: list[TokenRecord], teacher: list[TokenRecord]
    ) -> Tensor:
        """Computes the loss.

        Args:
            student (list[TokenRecord]): Records (B, L, C) of all layers, of
                any width. Those on another grid are interpolated.
            teacher (list[TokenRecord]): Records of all layers.

        Returns:
            Tensor: Scalar.
        """
        errors = {}
        for layer, source in self.pairs.items():
            target = teacher[source]
            if target.valid is not None:
                raise ValueError(
                    'relations between tokens are those of one image or '
                    'sequence each: they take no batch of padded sequences'
                )
            tokens = student[layer].resized(target.grid).tokens
            errors[layer] = relation_error(tokens, target.tokens)
        return self._average(errors)


@TASK_UTILS.register_module()
class TokenRelations(DistillMethod):
    """Matches which tokens resemble which, at some of the layers.

    Args:
        stages (int): See :class:`TokenRelationLoss`. Defaults to 4.
        layer_map (str | Sequence[int | None]): See
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'relations'

    def __init__(
        self,
        stages: int = 4,
        layer_map: LayerMap = 'uniform',
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stages = stages
        self.layer_map = layer_map
        self.loss_weight = loss_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(
            type='transmamba.TokenRelationLoss',
            stages=self.stages,
            layer_map=self.layer_map,
            loss_weight=self.loss_weight,
            **self.towers(),
        )

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(student=self.student(LAYERS), teacher=self.teacher(LAYERS))
