# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The distiller that takes a list of methods."""

from collections.abc import Sequence
from typing import Any

from mmrazor.models.distillers import ConfigurableDistiller

from transmamba_mm.registry import MODELS, TASK_UTILS

from .schedule import Phase, Schedule, within_phases

_PARTS = (
    'student_recorders',
    'teacher_recorders',
    'connectors',
    'distill_losses',
    'loss_forward_mappings',
)


@MODELS.register_module()
class MethodDistiller(ConfigurableDistiller):
    """A ``ConfigurableDistiller`` made of methods, one or several.

    Args:
        methods (Sequence[dict]): Methods of
            :mod:`transmamba_mm.distill.methods`, e.g.
            ``[dict(type='transmamba.LogitsKD', tau=2.0)]``. Defaults to
            ``()``.
        phases (Sequence[dict]): Arguments of
            :class:`~transmamba_mm.distill.Phase`, one after the other, e.g.
            ``[dict(end=0.06, methods=['mixer'], trains='mixers',
            task_loss=False)]``. Defaults to ``()``.
        **kwargs: Further parts, as ``mmrazor.ConfigurableDistiller`` takes
            them: recorders, deliveries, connectors, losses and mappings.

    Attributes:
        schedule (Schedule): When each loss counts, and what trains.
        in_alpha (dict[str, bool]): Whether the loss of each method counts
            inside ``alpha``.

    Raises:
        ValueError: If two parts have the same name, or phases and methods
            do not fit, see
            :func:`~transmamba_mm.distill.schedule.within_phases`.
    """

    def __init__(
        self,
        methods: Sequence[dict] = (),
        phases: Sequence[dict] = (),
        **kwargs: Any,
    ) -> None:
        built = [TASK_UTILS.build(method) for method in methods]
        parts = {key: dict(kwargs.pop(key, None) or {}) for key in _PARTS}
        for method in built:
            for key, new in method.parts().items():
                _add(parts[key], new, shared=key.endswith('recorders'))
        super().__init__(**parts, **kwargs)
        in_turn = [Phase(**phase) for phase in phases]
        spans = within_phases({m.name: m.span for m in built}, in_turn)
        spans = {f'loss_{name}': span for name, span in spans.items()}
        self.schedule = Schedule(spans, in_turn)
        self.in_alpha = {f'loss_{m.name}': m.in_alpha for m in built}


def _add(parts: dict, new: dict, shared: bool) -> None:
    """Adds parts by name; what may be shared may be there already."""
    for name, part in new.items():
        if name in parts and not (shared and parts[name] == part):
            raise ValueError(
                f'the distiller has {name!r} twice: give one of two equal '
                f'methods another name=..., and options of a method to the '
                f'method itself, methods=[dict(type=..., tau=...)]'
            )
        parts[name] = part
