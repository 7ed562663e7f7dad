# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight subcloning: makes a :class:`TransferPlan` (TransMamba §3.2).

Every student parameter outside the SSM that has a counterpart in the teacher
is copied. A narrower student takes one subset of the residual channels for
the whole network, and one subset of hidden channels per FFN.
"""

from functools import partial
from typing import Optional

import torch
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from transmamba_mm.contract import TeacherWeights
from transmamba_mm.contract.class_tokens import join_class_tokens
from transmamba_mm.contract.functions import difference
from transmamba_mm.contract.layer_map import LayerMap
from transmamba_mm.contract.roles import (
    AXES,
    HIDDEN,
    INNER,
    KEEP,
    RESIDUAL,
    TOKEN,
    inflated,
    is_ssm,
    split_role,
)
from transmamba_mm.contract.weights import GIVE_MODEL

from .importance import CRITERIA, Scores
from .pairing import Pairing
from .plan import TransferEntry, TransferError, TransferPlan
from .ssm import SSMSource


def _cut(value: Tensor, cuts: dict[int, Tensor]) -> Tensor:
    """Some channels of a tensor, by dimension."""
    for dim, index in cuts.items():
        value = value.index_select(dim, index)
    return value


class Subcloner:
    """Pairs the parameters of one student with one teacher.

    Args:
        student (nn.Module): A model that holds a
            :class:`~transmamba_mm.contract.MambaStudent`.
        teacher (TeacherWeights): The teacher's tensors by role.
        importance (str): How a narrower student chooses channels; see
            :func:`~transmamba_mm.transfer.importance.score_channels`.
            Ignored where no axis has to shrink. Defaults to
            ``'least_changed'``, as in the paper.
        reference (TeacherWeights, optional): See there.
        activations (Mapping[str, Tensor] | Callable, optional): See there.
        changes (Mapping[str, Tensor] | Callable, optional): See there.
        layer_map (str | Sequence): See
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        early_layers (int, optional): Copy the teacher into the first ``n``
            student layers only (version 2 of the paper). Defaults to None,
            all layers.
        widen (str, optional): What to do with a student wider than the
            teacher: None refuses it; ``'leading'`` writes the teacher into
            the first channels and leaves the others as initialised.
        ssm (SSMSource, optional): Where SSM parameters come from. Defaults
            to fresh ones.
        seed (int): Seed of ``importance='random'``. Defaults to 0.
        student_backbone (str, optional): Name of the student's module, for
            models that hold several. Defaults to None, the only one.

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
        activations: Optional[Scores] = None,
        changes: Optional[Scores] = None,
        layer_map: LayerMap = 'uniform',
        early_layers: Optional[int] = None,
        widen: Optional[str] = None,
        ssm: Optional[SSMSource] = None,
        seed: int = 0,
        student_backbone: Optional[str] = None,
    ) -> None:
        if widen not in (None, 'leading'):
            raise TransferError(
                f"widen must be None or 'leading', got {widen!r}"
            )
        if importance not in CRITERIA:
            raise TransferError(
                f'unknown importance {importance!r}; choose from '
                f'{", ".join(CRITERIA)}'
            )
        if early_layers is not None and early_layers < 0:
            raise TransferError(
                f'early_layers must not be negative, got {early_layers}'
            )
        self.importance = importance
        self.widen = widen
        self.ssm = ssm or SSMSource()
        self.pairing = Pairing(
            student,
            teacher,
            importance,
            reference,
            activations,
            changes,
            seed,
            layer_map,
            early_layers,
            widen,
            student_backbone,
        )

    def plan(self) -> TransferPlan:
        """Pairs every student parameter and returns the plan."""
        entries = []
        for name, parameter in self.pairing.student.named_parameters():
            entry = TransferEntry(name, tuple(parameter.shape))
            role = self.pairing.roles.get(name)
            if role is None:
                entry.note = self.pairing.why_no_role(name)
            elif is_ssm(role):
                self.ssm.fill(entry, role, self.pairing)
            elif role.startswith('lift.'):
                self._fill_lift(entry, role)
            else:
                self._fill(entry, role)
            entries.append(entry)
        self._drop_orphan_biases(entries)
        for entry in entries:
            role = self.pairing.roles.get(entry.name, '')
            if entry.value is None and 'mixer_out.' in role:
                # No attention projection fits: a pretrained Mamba's may.
                self.ssm.fill(entry, role, self.pairing)
        self.ssm.check(entries)
        settings = dict(
            teacher_family=self.pairing.teacher.family,
            importance=self.importance
            if self.pairing.selects
            else 'not needed',
            layer_map=self.pairing.layers,
            early_layers=self.pairing.early_layers,
            widen=self.widen,
            ssm=self.ssm.describe(),
        )
        return TransferPlan(
            entries,
            settings,
            dict(self.pairing.selections),
            self.pairing.kept_channels(),
        )

    def _fill_lift(self, entry: TransferEntry, role: str) -> None:
        """Puts each student channel where it came from in the teacher.

        So the head, copied whole, starts as if it were cut to the channels
        of the student.
        """
        entry.rule, entry.value = 'init', torch.zeros(entry.shape)
        if role == 'lift.bias':
            return
        width, size = entry.shape
        theirs = self.pairing.teacher.layer_dims[-1]
        if width != theirs:
            raise TransferError(
                f'{entry.name} lifts features to {width} channels, the '
                f"teacher has {theirs}: set the neck's out_channels and the "
                f"head's in_channels to {theirs}"
            )
        places = torch.arange(min(width, size))
        if size < width:
            places = self.pairing.indices(RESIDUAL, None, size)
        entry.value[places, torch.arange(len(places))] = 1
        entry.note = 'each channel to the one that it takes after'

    def _fill(self, entry: TransferEntry, role: str) -> None:
        """Decides rule and value of one parameter outside the SSM."""
        layer, kind = split_role(role)
        source_layer, reason = self.pairing.source_layer(layer)
        if reason:
            entry.note = reason
            return
        source = kind if layer is None else f'layers.{source_layer}.{kind}'
        teacher = self.pairing.teacher.tensors
        value, weight = teacher.get(source), None
        if value is None and source.endswith('.bias'):
            weight = teacher.get(f'{source[: -len("bias")]}weight')
        if weight is not None:
            value = weight.new_zeros(len(weight))
        if value is None:
            entry.note = self.pairing.teacher.notes.get(
                kind.split('.')[0], 'the teacher has no counterpart'
            )
            return
        axes = AXES[kind]
        rule, notes, index, cuts = 'copy', [], [], {}
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
                value, rule, note = self._fit_positions(value, size)
                notes += [note] if note else []
            total = value.shape[dim]
            if (
                axis == RESIDUAL
                and total not in self.pairing.teacher.layer_dims
            ):
                entry.note = f'the teacher has {total} other channels here'
                return
            index.append(slice(0, min(size, total)))
            if size == total:
                continue
            if axis in (RESIDUAL, HIDDEN, INNER) and size < total:
                chosen = self.pairing.indices(axis, source_layer, size)
                cuts[dim] = chosen
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
        entry.value = partial(_cut, value, cuts) if cuts else value
        entry.index = tuple(index) if rule == 'leading' else None
        if weight is not None:
            rule, notes = 'init', ['zero, as the teacher has none']
        entry.rule, entry.note = rule, ', '.join(notes)
        entry.source = self.pairing.teacher.names.get(source)
        entry.differs = difference(
            role,
            self.pairing.teacher.functions,
            source,
            self.pairing.functions,
        )
        if entry.differs:
            entry.note = ', '.join([*notes, entry.differs])

    def _fit_positions(
        self, value: Tensor, size: int
    ) -> tuple[Tensor, str, str]:
        """Resizes the grid of a position embedding to the student's.

        The student's class tokens get the position of the teacher's, or
        zero where the teacher adds none to it. With it go rule and note.
        """
        teacher, backbone = self.pairing.teacher, self.pairing.backbone
        count, extra = teacher.num_extra_tokens, backbone.num_extra_tokens
        classes, patches = value[:, :count], value[:, count:]
        source, grid = teacher.grid, tuple(backbone.patch_embed.init_out_size)
        rule, shown = 'copy', '{}x{}'.format(*source)
        if not teacher.grid_is_told:
            shown += ' (taken for square)'
        note = '' if teacher.grid_is_told else shown
        if source != grid:
            if not teacher.grid_is_told and patches.shape[1] == size - extra:
                raise TransferError(
                    f'the {size - extra} positions of the teacher may be '
                    f'{source[0]}x{source[1]}, or {grid[0]}x{grid[1]} as '
                    f"the student's. {GIVE_MODEL}"
                )
            patches = resize_pos_embed(patches, source, grid, 'bicubic', 0)
            rule, note = 'resize', '{} to {}x{}'.format(shown, *grid)
        if extra:
            if not count or 'cls_token' not in teacher.tensors:
                classes = patches.new_zeros(1, 1, patches.shape[2])
            patches = join_class_tokens(
                classes[:, :1].expand(-1, extra, -1),
                patches,
                backbone.class_token_slots(*grid),
            )
        return patches, rule, note

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
