# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight subcloning: makes a :class:`TransferPlan` (TransMamba §3.2).

Every student parameter outside the SSM that has a counterpart in the teacher
is copied. A narrower student takes one subset of the residual channels for
the whole network, and one subset of hidden channels per FFN.
"""

from collections.abc import Mapping, Sequence
from typing import Optional, Union

from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from transmamba_mm.models import MambaBackbone, find_mamba_backbone
from transmamba_mm.models.class_tokens import join_class_tokens
from transmamba_mm.models.layers.patch_embed import inflated

from .families import TeacherWeights, TransferError
from .importance import axis_name, score_channels, select
from .plan import TransferEntry, TransferPlan
from .roles import (
    AXES,
    HIDDEN,
    INNER,
    KEEP,
    RESIDUAL,
    TOKEN,
    is_ssm,
    split_role,
)
from .ssm import SSMSource

LayerMap = Union[str, Sequence[Optional[int]]]


def resolve_layer_map(
    layer_map: LayerMap, num_student: int, num_teacher: int
) -> list[Optional[int]]:
    """The teacher layer that each student layer is initialised from.

    Args:
        layer_map (str | Sequence[int | None]): ``'uniform'`` spreads the
            student's layers evenly over the teacher's, first and last
            included; ``'first_n'`` pairs them one to one and leaves surplus
            student layers fresh; or one teacher layer (None for fresh) per
            student layer.
        num_student (int): Student layers.
        num_teacher (int): Teacher layers.

    Returns:
        list[int | None]: One entry per student layer.

    Raises:
        TransferError: If the map does not fit the two depths.
    """
    if layer_map == 'uniform':
        if num_student == 1:
            return [num_teacher - 1]
        step = (num_teacher - 1) / (num_student - 1)
        return [int(i * step + 0.5) for i in range(num_student)]
    if layer_map == 'first_n':
        return [i if i < num_teacher else None for i in range(num_student)]
    if isinstance(layer_map, str):
        raise TransferError(
            f"layer_map must be 'uniform', 'first_n' or a list, got "
            f'{layer_map!r}'
        )
    resolved = list(layer_map)
    if len(resolved) != num_student or not all(
        index is None or 0 <= index < num_teacher for index in resolved
    ):
        raise TransferError(
            f'layer_map {resolved} needs one teacher layer in '
            f'0..{num_teacher - 1}, or None, for each of the {num_student} '
            f'student layers'
        )
    return resolved


def student_roles(
    student: nn.Module,
) -> tuple[MambaBackbone, dict[str, str]]:
    """Roles of a whole student: its backbone's, and its head's.

    The head is the last Linear below ``student.head``.

    Returns:
        tuple[MambaBackbone, dict[str, str]]: The backbone, and the role of
        each parameter by its full name.
    """
    backbone = find_mamba_backbone(student)
    prefix = next(
        f'{name}.' if name else ''
        for name, module in student.named_modules()
        if module is backbone
    )
    roles = {
        prefix + name: role for name, role in backbone.param_roles().items()
    }
    head = getattr(student, 'head', None)
    if isinstance(head, nn.Module):
        linears = [
            name
            for name, module in head.named_modules()
            if isinstance(module, nn.Linear)
        ]
        if linears:
            path = f'head.{linears[-1]}' if linears[-1] else 'head'
            roles[f'{path}.weight'] = 'head.weight'
            roles[f'{path}.bias'] = 'head.bias'
    return backbone, roles


def _summarise(index: Tensor, total: int) -> str:
    shown = index.tolist()
    if len(shown) > 12:
        shown = [*shown[:6], '...', *shown[-3:]]
    return f'{index.numel()} of {total} [{" ".join(map(str, shown))}]'


class Subcloner:
    """Pairs the parameters of one student with one teacher.

    Args:
        student (nn.Module): A model that holds one
            :class:`~transmamba_mm.models.MambaBackbone`.
        teacher (TeacherWeights): The teacher's tensors by role.
        importance (str): How a narrower student chooses channels; see
            :func:`~transmamba_mm.transfer.importance.score_channels`.
            Ignored where no axis has to shrink. Defaults to
            ``'least_changed'``, as in the paper.
        reference (TeacherWeights, optional): See there.
        activations (Mapping[str, Tensor], optional): See there.
        layer_map (str | Sequence): See :func:`resolve_layer_map`. Defaults
            to ``'uniform'``.
        early_layers (int, optional): Copy the teacher into the first ``n``
            student layers only (version 2 of the paper). Defaults to None,
            all layers.
        widen (str, optional): What to do with a student wider than the
            teacher: None refuses it; ``'leading'`` writes the teacher into
            the first channels and leaves the others as initialised.
        ssm (SSMSource, optional): Where SSM parameters come from. Defaults
            to fresh ones.
        seed (int): Seed of ``importance='random'``. Defaults to 0.

    Raises:
        TransferError: If the student is wider than the teacher and ``widen``
            is None, or an option is not supported.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: TeacherWeights,
        *,
        importance: str = 'least_changed',
        reference: Optional[TeacherWeights] = None,
        activations: Optional[Mapping[str, Tensor]] = None,
        layer_map: LayerMap = 'uniform',
        early_layers: Optional[int] = None,
        widen: Optional[str] = None,
        ssm: Optional[SSMSource] = None,
        seed: int = 0,
    ) -> None:
        if widen not in (None, 'leading'):
            raise TransferError(
                f"widen must be None or 'leading', got {widen!r}"
            )
        self.student = student
        self.teacher = teacher
        self.backbone, self.roles = student_roles(student)
        self.importance = importance
        self.early_layers = early_layers
        self.widen = widen
        self.ssm = ssm or SSMSource()
        self.layers = resolve_layer_map(
            layer_map, self.backbone.num_layers, teacher.num_layers
        )
        self._scores: Optional[dict[str, Tensor]] = None
        self._score_args = (importance, reference, activations, seed)
        self._selected: dict[tuple[str, int], Tensor] = {}
        self.selections: dict[str, str] = {}
        self._check_width()

    def _check_width(self) -> None:
        widest, teacher = max(self.backbone.layer_dims), self.teacher
        if widest > teacher.embed_dims and self.widen is None:
            raise TransferError(
                f'the student ({widest} channels) is wider than the teacher '
                f'({teacher.embed_dims}): choose a narrower student or a '
                f"wider teacher, or set widen='leading' to fill the first "
                f'{teacher.embed_dims} channels'
            )

    # -------------------------------------------------------- index sets

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
                self._scores = score_channels(self.teacher, *self._score_args)
            score = self._scores[name]
            index = select(score, size)
            self._selected[name, size] = index
            label = f'{name} ({size})' if name in self.selections else name
            self.selections[label] = _summarise(index, score.numel())
        return self._selected[name, size]

    # ------------------------------------------------------- the entries

    def plan(self) -> TransferPlan:
        """Pairs every student parameter and returns the plan."""
        entries = []
        for name, parameter in self.student.named_parameters():
            entry = TransferEntry(name, tuple(parameter.shape))
            role = self.roles.get(name)
            if role is None:
                entry.note = 'no role in the transfer'
            elif is_ssm(role):
                self.ssm.fill(entry, role, self)
            else:
                self._fill(entry, role)
            entries.append(entry)
        self._drop_orphan_biases(entries)
        for entry in entries:
            role = self.roles.get(entry.name, '')
            if entry.value is None and 'mixer_out.' in role:
                # No attention projection fits: a pretrained Mamba's may.
                self.ssm.fill(entry, role, self)
        self.ssm.check(entries)
        settings = dict(
            teacher_family=self.teacher.family,
            importance=self.importance if self._selected else 'not needed',
            layer_map=self.layers,
            early_layers=self.early_layers,
            widen=self.widen,
            ssm=self.ssm.describe(),
        )
        return TransferPlan(entries, settings, dict(self.selections))

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

    def _fill(self, entry: TransferEntry, role: str) -> None:
        """Decides rule and value of one parameter outside the SSM."""
        layer, kind = split_role(role)
        source_layer, reason = self.source_layer(layer)
        if reason:
            entry.note = reason
            return
        source = kind if layer is None else f'layers.{source_layer}.{kind}'
        value = self.teacher.tensors.get(source)
        if value is None:
            entry.note = 'the teacher has no counterpart'
            return
        axes = AXES[kind]
        rule, notes, index = 'copy', [], []
        if kind == 'patch_embed.weight' and len(entry.shape) == 5:
            value, axes = inflated(value, entry.shape[2]), (*axes, KEEP)
            rule = 'resize'
            notes.append(f'inflated to {entry.shape[2]} frames')
        if value.dim() != len(entry.shape):
            entry.note = f'shape differs: teacher {tuple(value.shape)}'
            return
        for dim, axis in enumerate(axes):
            size = entry.shape[dim]
            if axis == TOKEN:
                value, resized = self._fit_positions(value, size)
                if resized:
                    rule = 'resize'
                    notes.append(resized)
            total = value.shape[dim]
            index.append(slice(0, min(size, total)))
            if size == total:
                continue
            if axis in (RESIDUAL, HIDDEN, INNER) and size < total:
                chosen = self.indices(axis, source_layer, size)
                value = value.index_select(dim, chosen)
                rule = 'select' if rule == 'copy' else rule
                notes.append(f'{axis} {size}/{total}')
            elif axis in (RESIDUAL, HIDDEN) and self.widen == 'leading':
                rule = 'leading'
                notes.append(f'first {total} of {size} {axis}')
            else:
                entry.note = (
                    f'shape differs on the {axis} axis: teacher '
                    f'{tuple(value.shape)}'
                )
                return
        entry.rule, entry.note = rule, ', '.join(notes)
        entry.source = self.teacher.names[source]
        entry.value = value
        entry.index = tuple(index) if rule == 'leading' else None

    def _fit_positions(self, value: Tensor, size: int) -> tuple[Tensor, str]:
        """Resizes the grid of a position embedding to the student's.

        The student's class tokens get the position of the teacher's, or
        zero where the teacher adds none to it.
        """
        teacher_extra = self.teacher.num_extra_tokens
        classes, patches = value[:, :teacher_extra], value[:, teacher_extra:]
        extra = self.backbone.num_extra_tokens
        grid = self.backbone.patch_embed.init_out_size
        note = ''
        if patches.shape[1] != size - extra:
            source = self.teacher.grid
            patches = resize_pos_embed(patches, source, grid, 'bicubic', 0)
            note = '{}x{} to {}x{}'.format(*source, *grid)
        if extra:
            if not teacher_extra:
                classes = patches.new_zeros(1, 1, patches.shape[2])
            patches = join_class_tokens(
                classes[:, :1].expand(-1, extra, -1),
                patches,
                self.backbone.class_token_slots(*grid),
            )
        return patches, note

    @staticmethod
    def _drop_orphan_biases(entries: list[TransferEntry]) -> None:
        """A bias without its weight belongs to a function never copied."""
        by_name = {entry.name: entry for entry in entries}
        for entry in entries:
            if not entry.name.endswith('.bias') or entry.value is None:
                continue
            weight = by_name.get(entry.name[: -len('bias')] + 'weight')
            if weight is not None and weight.value is None:
                entry.rule, entry.source = 'fresh', None
                entry.value, entry.note = None, 'its weight is fresh'
