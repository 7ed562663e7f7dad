# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A linear map per layer, from the student's width to the teacher's."""

from collections.abc import Sequence
from typing import Optional, Union

from mmrazor.models.architectures.connectors.base_connector import (
    BaseConnector,
)
from torch import nn

from transmamba_mm.contract import Pair, PairAware, TokenRecord
from transmamba_mm.contract.layer_map import LayerMap, resolve_layer_map
from transmamba_mm.ops import linear
from transmamba_mm.registry import MODELS


@MODELS.register_module()
class LayerProjection(BaseConnector, PairAware):
    """Brings student tokens to the width of the layers they are paired with.

    Args:
        layer_map (str | Sequence[int | None]): Which teacher layer each
            student layer is paired with, see
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        only_last (bool): Whether the records are those of the last layer
            alone. Defaults to False.
        always (bool): Also where the widths agree, which by default need no
            map. Defaults to False.
        student_backbone (str, optional): Name of the student's module, for
            models that hold several. Defaults to None, the only one.
        teacher_backbone (str, optional): Likewise of the teacher's.
        init_cfg (dict, optional): mmengine initialisation.
    """

    def __init__(
        self,
        layer_map: Union[LayerMap, Sequence] = 'uniform',
        only_last: bool = False,
        always: bool = False,
        student_backbone: Optional[str] = None,
        teacher_backbone: Optional[str] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.layer_map = layer_map
        self.only_last = only_last
        self.always = always
        self.student_backbone = student_backbone
        self.teacher_backbone = teacher_backbone
        self.maps = nn.ModuleDict()

    def prepare(self, pair: Pair) -> None:
        """Builds the maps."""
        student = pair.student(self.student_backbone).backbone
        teacher = pair.teacher(self.teacher_backbone)
        layers = resolve_layer_map(
            self.layer_map, student.layer_dims, teacher.layer_dims
        )
        if self.only_last:
            layers = [None] * (len(layers) - 1) + [teacher.num_layers - 1]
        for layer, source in enumerate(layers):
            if source is None:
                continue
            widths = student.layer_dims[layer], teacher.layer_dims[source]
            if self.always or widths[0] != widths[1]:
                self.maps[str(layer)] = nn.Linear(*widths)

    def forward_train(self, feature: list[TokenRecord]) -> list[TokenRecord]:
        """Maps patch tokens (B, L, C_s) to (B, L, C_t), layer by layer."""
        records = []
        for record in feature:
            if str(record.layer) in self.maps:
                each = self.maps[str(record.layer)]
                record = record.with_tokens(
                    linear(record.tokens, each.weight, each.bias)
                )
            records.append(record)
        return records
