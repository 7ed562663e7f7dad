# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hidden states of paired layers (MOHAWK's second stage, arXiv 2408.10189).

Channel by channel, without a map in between: one learned per layer could learn
what the student should.
"""

from typing import Any

from transmamba_mm.contract.layer_map import LayerMap
from transmamba_mm.contract.sites import LAYERS
from transmamba_mm.registry import TASK_UTILS

from .base import DistillMethod, Reading


@TASK_UTILS.register_module()
class HiddenStates(DistillMethod):
    """Matches the residual stream after each layer with the paired teacher's.

    Args:
        layer_map (str | Sequence[int | None]): See
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        channels (str): What a student of another width is compared with:
            ``'kept'``, the teacher's channels that weight subcloning gave
            it, or ``'learned'``, all of them, through one linear map per
            layer. Defaults to ``'kept'``.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.

    Raises:
        ValueError: If ``channels`` is neither.
    """

    NAME = 'hidden'

    def __init__(
        self,
        layer_map: LayerMap = 'uniform',
        channels: str = 'kept',
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if channels not in ('kept', 'learned'):
            raise ValueError(
                f"channels must be 'kept' or 'learned', got {channels!r}"
            )
        self.channels = channels
        self.layer_map = layer_map
        self.loss_weight = loss_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(
            type='transmamba.LayerMatchLoss',
            layer_map=self.layer_map,
            loss_weight=self.loss_weight,
            **self.towers(),
        )

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        projection = {}
        if self.channels == 'learned':
            projection = dict(
                type='transmamba.LayerProjection',
                layer_map=self.layer_map,
                **self.towers(),
            )
        return dict(
            student=self.student(LAYERS, **projection),
            teacher=self.teacher(LAYERS),
        )
