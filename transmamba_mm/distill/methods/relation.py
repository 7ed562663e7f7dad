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
from transmamba_mm.contract import TokenRecord
from transmamba_mm.contract.layer_map import LayerMap
from transmamba_mm.contract.sites import LAYERS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import LayerPairLoss
from .base import DistillMethod, Reading


def _relations(tokens: Tensor) -> Tensor:
    """Cosine similarities of tokens (B, L, C), each row of length 1."""
    # Similarities near one lose their differences in half precision.
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens.float(), dim=-1)
        return F.normalize(unit @ unit.mT, dim=-1)


@MODELS.register_module()
class TokenRelationLoss(LayerPairLoss):
    """One minus the cosine of the rows of two relation maps.

    Args:
        stages (int): How many pairs of layers are compared, spread evenly
            over the depth, the last one included. Defaults to 4.
        **kwargs: See :class:`LayerPairLoss`.
    """

    def __init__(self, stages: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stages = check_int('stages', stages)

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
        pairs = list(self.pairs.items())
        stages = min(self.stages, len(pairs))
        ends = [(i + 1) * len(pairs) // stages - 1 for i in range(stages)]
        errors = {}
        for layer, source in (pairs[end] for end in ends):
            target = teacher[source]
            with torch.no_grad():
                wanted = _relations(target.tokens)
            found = _relations(student[layer].resized(target.grid).tokens)
            errors[layer] = 1 - (found * wanted).sum(-1).mean()
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
