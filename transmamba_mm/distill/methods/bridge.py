# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""B and C of each scan against keys and queries (CAB, arXiv 2510.19266).

With ``A`` near one a selective scan is a linear attention that writes its
state with B, as with keys, and reads it with C, as with queries. A small MLP
for each, the bridge, maps them to the teacher's. As in the authors' code
(github.com/wph6/CAB, ``DistillAligner_biv2``): MLPs of 128 hidden channels,
one for each layer, direction, and B or C; the squared error of keys and
queries as they are projected, summed over directions and B and C, averaged
over the layers, with weight 3.

Interpreted: layers are paired by ``layer_map``; class tokens are left out; a
direction is compared in the order of the tokens, of both sides, which is the
same as in its own. PlainMamba computes B and C of a step from another token
than the one that it visits; they are compared with the token that they are
computed from.
"""

from typing import Any

import torch
from torch import Tensor, nn

from transmamba_mm.checks import check_int
from transmamba_mm.contract import MambaStudent, TokenRecord
from transmamba_mm.contract.layer_map import LayerMap
from transmamba_mm.contract.sites import BC, QKV
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import LayerPairLoss
from ..projection import LayerMaps
from .base import DistillMethod, Reading


@MODELS.register_module()
class BridgeMLPs(LayerMaps):
    """Brings B and C (N channels) to the width of keys and queries.

    Args:
        hidden (int): Hidden channels of each MLP. Defaults to 128.
        **kwargs: See :class:`LayerMaps`.
    """

    def __init__(self, hidden: int = 128, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = check_int('hidden', hidden)

    def _make(
        self, student: MambaStudent, layer: int, width: int
    ) -> nn.ModuleList:
        """See :meth:`LayerMaps._make`."""
        state = student.mixers()[layer].d_state
        return nn.ModuleList(
            nn.Sequential(
                nn.Linear(state, self.hidden),
                nn.SiLU(),
                nn.Linear(self.hidden, width),
            )
            for _ in range(2 * len(student.directions))
        )

    def _apply_map(self, each: nn.ModuleList, tokens: Tensor) -> Tensor:
        """See :meth:`LayerMaps._apply_map`."""
        parts = tokens.chunk(len(each), dim=-1)
        return torch.cat([mlp(x) for mlp, x in zip(each, parts)], dim=-1)


@MODELS.register_module()
class BridgeLoss(LayerPairLoss):
    """Squared error of B with keys and of C with queries.

    Args:
        **kwargs: See :class:`LayerPairLoss`.
    """

    def forward(
        self, student: list[TokenRecord], teacher: list[TokenRecord]
    ) -> Tensor:
        """Computes the loss.

        Args:
            student (list[TokenRecord]): For each direction B, then C, as
                wide as the teacher's layers (B, L, K 2 C). Those on another
                grid are interpolated.
            teacher (list[TokenRecord]): Queries, keys and values.

        Returns:
            Tensor: Scalar.
        """
        errors = {}
        for layer, source in self.pairs.items():
            target = teacher[source]
            queries, keys, _ = target.tokens.detach().float().chunk(3, dim=-1)
            wanted = torch.stack([keys, queries], dim=2).unsqueeze(2)
            found = student[layer].resized(target.grid).tokens.float()
            found = found.unflatten(-1, (-1, 2, keys.shape[-1]))
            error = (found - wanted).square()  # (B, L, K, 2, C)
            errors[layer] = error.mean((0, 1, 4)).sum()
        return self._average(errors)


@TASK_UTILS.register_module()
class AttentionBridge(DistillMethod):
    """Teaches each scan to write and read as the paired attention does.

    Args:
        hidden (int): See :class:`BridgeMLPs`. Defaults to 128.
        layer_map (str | Sequence[int | None]): See
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        loss_weight (float): Factor of the loss; the authors' is 3. Defaults
            to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'bridge'

    def __init__(
        self,
        hidden: int = 128,
        layer_map: LayerMap = 'uniform',
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden = hidden
        self.layer_map = layer_map
        self.loss_weight = loss_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(
            type='transmamba.BridgeLoss',
            layer_map=self.layer_map,
            loss_weight=self.loss_weight,
            **self.towers(),
        )

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        mlps = dict(
            type='transmamba.BridgeMLPs',
            hidden=self.hidden,
            layer_map=self.layer_map,
            **self.towers(),
        )
        return dict(
            student=self.student(BC, **mlps), teacher=self.teacher(QKV)
        )
