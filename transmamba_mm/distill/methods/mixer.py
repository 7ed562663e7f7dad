# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Mixers against attention: what each adds to the residual stream.

On the student's own input, or, teacher-forced, on the teacher's: then every
mixer learns by itself what attention does, and errors of one layer do not
reach the next (MOHAWK, arXiv 2408.10189; LoLCATs, arXiv 2410.10254).
"""

from collections.abc import Mapping
from typing import Any, Optional

from torch import Tensor

from transmamba_mm.contract import GridStudent, Pair, Teacher, TokenRecord
from transmamba_mm.contract.layer_map import LayerMap
from transmamba_mm.contract.sites import MIXERS, STREAMS
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import ChannelPairLoss, normalised_mse
from .base import DistillMethod, Reading


def check_forced_pair(
    student: GridStudent, teacher: Teacher, pairs: Mapping[int, int]
) -> None:
    """Complains of a student that cannot read what its teacher reads.

    Args:
        student (GridStudent): The student.
        teacher (Teacher): The teacher.
        pairs (Mapping[int, int]): Teacher layer of each student layer.

    Raises:
        ValueError: If the student is wider, or only it has class tokens.
    """
    for layer, source in pairs.items():
        widths = student.layer_dims[layer], teacher.layer_dims[source]
        if widths[0] > widths[1]:
            raise ValueError(
                f'teacher-forced mixer matching runs student layer {layer} '
                f'({widths[0]} channels) on what teacher layer {source} reads '
                f'({widths[1]} channels): choose a student that is not '
                f'wider, or teacher_forced=False'
            )
    if student.num_extra_tokens and not teacher.num_extra_tokens:
        raise ValueError(
            'teacher-forced mixer matching needs a teacher with a class token '
            'for a student with class tokens: use a student without, or '
            'teacher_forced=False'
        )


@MODELS.register_module()
class ForcedMixerLoss(ChannelPairLoss):
    """:func:`normalised_mse` of mixers that run on the teacher's input.

    A student with class tokens reads and learns the teacher's class token as
    well, in its own places.

    Args:
        **kwargs: See :class:`ChannelPairLoss`.

    Raises:
        ValueError: If the student is wider, or only it has class tokens.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._student: Optional[GridStudent] = None

    def prepare(self, pair: Pair) -> None:
        """See :meth:`ChannelPairLoss.prepare`."""
        super().prepare(pair)
        student = pair.student(self.student_backbone).backbone
        teacher = pair.teacher(self.teacher_backbone)
        check_forced_pair(student, teacher, self.pairs)
        # Not a submodule: its parameters are the student's.
        object.__setattr__(self, '_student', student)

    def forward(
        self, streams: list[TokenRecord], teacher: list[TokenRecord]
    ) -> Tensor:
        """Computes the loss.

        Args:
            streams (list[TokenRecord]): What each teacher layer reads.
            teacher (list[TokenRecord]): What its attention adds to that.

        Returns:
            Tensor: Scalar.
        """
        errors = {}
        for layer, source in self.pairs.items():
            width = self._student.layer_dims[layer]
            stream = self.kept.of(streams[source], width)
            target = self.kept.of(teacher[source], width)
            mixed = self._student.mix_record(layer, stream)
            errors[layer] = normalised_mse(mixed, self._student.joined(target))
        return self._average(errors)


@TASK_UTILS.register_module()
class MixerMatching(DistillMethod):
    """Matches each mixer's output with the paired layer's attention output.

    Args:
        teacher_forced (bool): Whether the mixers run on the teacher's input;
            else the student's forward pass is read. Defaults to True.
        layer_map (str | Sequence[int | None]): See
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'mixer'

    def __init__(
        self,
        teacher_forced: bool = True,
        layer_map: LayerMap = 'uniform',
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.teacher_forced = teacher_forced
        self.layer_map = layer_map
        self.loss_weight = loss_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        kind = 'ForcedMixerLoss' if self.teacher_forced else 'LayerMatchLoss'
        return dict(
            type=f'transmamba.{kind}',
            layer_map=self.layer_map,
            loss_weight=self.loss_weight,
            **self.towers(),
        )

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        target = self.teacher(MIXERS)
        if self.teacher_forced:
            return dict(streams=self.teacher(STREAMS), teacher=target)
        projection = dict(
            type='transmamba.LayerProjection',
            layer_map=self.layer_map,
            **self.towers(),
        )
        return dict(student=self.student(MIXERS, **projection), teacher=target)
