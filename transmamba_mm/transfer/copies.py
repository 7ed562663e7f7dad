# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Whole parts of a student that are the teacher's, as they are."""

from collections.abc import Mapping

from torch import nn

from transmamba_mm.contract.weights import on_cpu

from .plan import TransferError, TransferPlan


def copy_parts(
    plan: TransferPlan, teacher: nn.Module, copies: Mapping[str, str]
) -> None:
    """Adds to a plan what a student takes over whole, e.g. a text tower.

    Args:
        plan (TransferPlan): The plan, changed in place.
        teacher (nn.Module): The teacher.
        copies (Mapping[str, str]): Name of a module or parameter of the
            student's model to that of the teacher's.

    Raises:
        TransferError: If there is none of that name, or the two do not have
            the same parameters.
    """
    parameters = dict(teacher.named_parameters())
    for ours, theirs in copies.items():
        entries = {x.name: x for x in plan.entries if _within(x.name, ours)}
        sources = {name for name in parameters if _within(name, theirs)}
        for side, name, found in (
            ('student', ours, entries),
            ('teacher', theirs, sources),
        ):
            if not found:
                raise TransferError(
                    f'copies: the {side} has no parameter at {name!r}'
                )
        wanted = {theirs + name[len(ours) :]: name for name in entries}
        for source in wanted.keys() ^ sources:
            owner = 'student' if source in wanted else 'teacher'
            raise TransferError(
                f'copies={{{ours!r}: {theirs!r}}}: only the {owner} has '
                f'{wanted.get(source, source)}: both must be of one kind'
            )
        for source, name in wanted.items():
            value, entry = parameters[source].detach(), entries[name]
            if tuple(value.shape) != entry.shape:
                raise TransferError(
                    f'copies: {name} is of shape {entry.shape}, '
                    f'{source} of the teacher of {tuple(value.shape)}'
                )
            entry.rule, entry.source = 'copy', source
            entry.value = on_cpu(value, of_model=True)
            entry.note, entry.index = f'as {ours} is copied whole', None


def _within(name: str, part: str) -> bool:
    return f'{name}.'.startswith(f'{part}.')
