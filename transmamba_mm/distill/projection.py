# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Learned maps from a student's layers to the teacher's widths."""

from abc import abstractmethod
from typing import Any, Optional

from mmrazor.models.architectures.connectors.base_connector import (
    BaseConnector,
)
from torch import Tensor, nn

from transmamba_mm.contract import MambaStudent, Pair, PairAware, TokenRecord
from transmamba_mm.contract.layer_map import LayerMap, resolve_layer_map
from transmamba_mm.ops import with_fast_linears
from transmamba_mm.registry import MODELS


class LayerMaps(BaseConnector, PairAware):
    """A connector with a map for each student layer that is paired.

    Args:
        layer_map (str | Sequence[int | None]): Which teacher layer each
            student layer is paired with, see
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        student_backbone (str, optional): Name of the student's module, for
            models that hold several. Defaults to None, the only one.
        teacher_backbone (str, optional): Likewise of the teacher's.
        init_cfg (dict, optional): mmengine initialisation.
    """

    def __init__(
        self,
        layer_map: LayerMap = 'uniform',
        student_backbone: Optional[str] = None,
        teacher_backbone: Optional[str] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.layer_map = layer_map
        self.student_backbone = student_backbone
        self.teacher_backbone = teacher_backbone
        self.maps = nn.ModuleDict()

    @abstractmethod
    def _make(
        self, student: MambaStudent, layer: int, width: int
    ) -> Optional[nn.Module]:
        """The map of a student layer to the teacher's width, if any."""

    @abstractmethod
    def _apply_map(self, each: nn.Module, tokens: Tensor) -> Tensor:
        """Maps a layer's patch tokens (B, L, C)."""

    def prepare(self, pair: Pair) -> None:
        """Builds the maps."""
        student = pair.student(self.student_backbone).backbone
        teacher = pair.teacher(self.teacher_backbone)
        layers = resolve_layer_map(
            self.layer_map, student.layer_dims, teacher.layer_dims
        )
        for layer, source in enumerate(layers):
            if source is None:
                continue
            made = self._make(student, layer, teacher.layer_dims[source])
            if made is not None:
                self.maps[str(layer)] = made

    def forward_train(self, feature: list[TokenRecord]) -> list[TokenRecord]:
        """Maps patch tokens layer by layer; others stay as they are."""
        return [
            record.with_tokens(
                self._apply_map(self.maps[str(record.layer)], record.tokens)
            )
            if str(record.layer) in self.maps
            else record
            for record in feature
        ]


@MODELS.register_module()
class LayerProjection(LayerMaps):
    """Brings student tokens to the width of the layers they are paired with.

    Args:
        only_last (bool): Whether the records are those of the last layer
            alone, which is paired with the teacher's last. Defaults to
            False.
        always (bool): Also where the widths agree, which by default need no
            map. Defaults to False.
        **kwargs: See :class:`LayerMaps`.
    """

    def __init__(
        self, only_last: bool = False, always: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.only_last = only_last
        self.always = always

    def _make(
        self, student: MambaStudent, layer: int, width: int
    ) -> Optional[nn.Linear]:
        """See :meth:`LayerMaps._make`."""
        if self.only_last and layer < student.num_layers - 1:
            return None
        own = student.layer_dims[layer]
        return nn.Linear(own, width) if self.always or own != width else None

    def _apply_map(self, each: nn.Linear, tokens: Tensor) -> Tensor:
        """See :meth:`LayerMaps._apply_map`."""
        return with_fast_linears(each, tokens)
