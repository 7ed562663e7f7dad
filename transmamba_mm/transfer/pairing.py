# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Who is paired with whom: layers with layers, channels with channels."""

from typing import Optional

from torch import Tensor, nn

from transmamba_mm.contract import MambaStudent, Student, TeacherWeights
from transmamba_mm.contract.functions import functions_of
from transmamba_mm.contract.layer_map import LayerMap, resolve_layer_map
from transmamba_mm.contract.roles import INNER

from .importance import Scores, axis_name, score_channels, select
from .plan import TransferError


def _summarise(index: Tensor, total: int) -> str:
    shown = index.tolist()
    if len(shown) > 12:
        shown = [*shown[:6], '...', *shown[-3:]]
    return f'{index.numel()} of {total} [{" ".join(map(str, shown))}]'


class Pairing:
    """A student's layers and channels, and the teacher's that they take.

    Args:
        student (nn.Module): A model that holds a
            :class:`~transmamba_mm.contract.MambaStudent`.
        teacher (TeacherWeights): The teacher's tensors by role.
        importance (str): How a narrower student chooses channels; see
            :func:`~transmamba_mm.transfer.importance.score_channels`.
        reference (TeacherWeights, optional): See there.
        activations (Scores, optional): See there.
        changes (Scores, optional): See there.
        seed (int): See there.
        layer_map (str | Sequence): See
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
        early_layers (int, optional): Pair the first ``n`` student layers
            only.
        widen (str, optional): ``'leading'`` accepts a student wider than the
            teacher.
        student_backbone (str, optional): Name of the student's module, for
            models that hold several.

    Attributes:
        student (nn.Module): The model with the student.
        backbone (MambaStudent): The student.
        roles (dict[str, str]): Roles of the model's parameters by name.
        why_no_role (Callable): Says of others why they have none.
        functions (dict[str, Function]): What norms and FFNs of the student
            compute, by role.
        teacher (TeacherWeights): The teacher.
        layers (list[int | None]): Teacher layer of each student layer.
        selections (dict[str, str]): What was selected, for the plan.

    Raises:
        TransferError: If the widths do not fit.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: TeacherWeights,
        importance: str,
        reference: Optional[TeacherWeights],
        activations: Optional[Scores],
        changes: Optional[Scores],
        seed: int,
        layer_map: LayerMap,
        early_layers: Optional[int],
        widen: Optional[str],
        student_backbone: Optional[str],
    ) -> None:
        found = Student(student, student_backbone)
        self.student = student
        self.backbone: MambaStudent = found.backbone
        self.roles = found.roles()
        self.why_no_role = found.why_no_role
        self.functions = functions_of(
            {role: name for name, role in self.roles.items()},
            dict(student.named_modules()),
        )
        self.teacher = teacher
        self.early_layers = early_layers
        try:
            self.layers = resolve_layer_map(
                layer_map, self.backbone.layer_dims, teacher.layer_dims
            )
        except ValueError as error:
            raise TransferError(str(error)) from error
        self._scores: Optional[dict[str, Tensor]] = None
        self._score_args = (
            importance,
            reference,
            activations,
            seed,
            changes,
        )
        self._selected: dict[tuple[str, int], Tensor] = {}
        self.selections: dict[str, str] = {}
        self._check_widths(widen)

    @property
    def selects(self) -> bool:
        """bool: Whether any channels had to be chosen."""
        return bool(self._selected)

    def _check_widths(self, widen: Optional[str]) -> None:
        ours, theirs = self.backbone.layer_dims, self.teacher.layer_dims
        widest = max(ours)
        if widest > max(theirs) and widen is None:
            raise TransferError(
                f'the student ({widest} channels) is wider than the teacher '
                f'({max(theirs)}): choose a narrower student or a wider '
                f"teacher, or set widen='leading' to fill the first "
                f'{max(theirs)} channels'
            )
        if len(set(theirs)) == 1:
            return
        for layer, source in enumerate(self.layers):
            if source is not None and ours[layer] != theirs[source]:
                raise TransferError(
                    f'the teacher has layers of {sorted(set(theirs))} '
                    f'channels, of which none can be selected: student layer '
                    f'{layer} ({ours[layer]} channels) must be paired with a '
                    f'layer as wide, not with layer {source} '
                    f'({theirs[source]}); set layer_map'
                )

    def indices(self, axis: str, layer: Optional[int], size: int) -> Tensor:
        """The teacher channels that an axis of ``size`` channels keeps.

        Args:
            axis (str): ``'residual'``, ``'hidden'`` or ``'inner'``.
            layer (int | None): Teacher layer, for the per-layer axes.
            size (int): Student channels, at most the teacher's.

        Returns:
            Tensor: LongTensor (size,), ascending.
        """
        name = axis_name(axis, layer)
        if (name, size) not in self._selected:
            if self._scores is None:
                self._scores = self._score(f'{name} to {size} channels')
            if name not in self._scores:
                raise TransferError(
                    f'importance={self._score_args[0]!r} says nothing about '
                    f'{name} of this teacher: choose another one'
                )
            score = self._scores[name]
            index = select(score, size)
            self._selected[name, size] = index
            label = f'{name} ({size})' if name in self.selections else name
            self.selections[label] = _summarise(index, score.numel())
        return self._selected[name, size]

    def _score(self, cut: str) -> dict[str, Tensor]:
        try:
            return score_channels(self.teacher, *self._score_args)
        except TransferError as error:
            raise TransferError(f'to cut {cut}: {error}') from error

    def states(self, layer: int, size: int, score: Tensor) -> Tensor:
        """The attention channels that a state of ``size`` dimensions keeps.

        Args:
            layer (int): Teacher layer.
            size (int): Dimensions of the state.
            score (Tensor): A score per channel, for the case that
                ``'least_changed'`` has no reference and no residual channel
                is dropped: a teacher is not fine-tuned for this alone.

        Returns:
            Tensor: LongTensor (size,), ascending.
        """
        criterion, reference = self._score_args[:2]
        narrower = min(self.backbone.layer_dims) < min(self.teacher.layer_dims)
        if criterion == 'least_changed' and reference is None and not narrower:
            return select(score, size)
        return self.indices(INNER, layer, size)

    def kept_channels(self) -> dict[int, Tensor]:
        """Residual channels of the teacher that the student has, by width.

        Returns:
            dict[int, Tensor]: One LongTensor (width,) for each width of the
            student below the teacher's.
        """
        theirs = self.teacher.layer_dims
        if len(set(theirs)) > 1:
            return {}  # widths agree, see _check_widths
        return {
            width: self.indices('residual', None, width)
            for width in sorted(set(self.backbone.layer_dims))
            if width < theirs[0]
        }

    def source_layer(
        self, layer: Optional[int]
    ) -> tuple[Optional[int], Optional[str]]:
        """Teacher layer for a student layer, or why there is none."""
        if layer is None:
            return None, None
        if self.early_layers is not None and layer >= self.early_layers:
            return None, f'beyond early_layers={self.early_layers}'
        if self.layers[layer] is None:
            return None, 'no teacher layer in layer_map'
        return self.layers[layer], None
