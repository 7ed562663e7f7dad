# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which teacher layer each student layer takes after."""

from collections.abc import Sequence
from itertools import groupby
from typing import Optional, Union

LayerMap = Union[str, Sequence[Optional[int]]]


def stages_of(dims: Sequence[int]) -> list[int]:
    """How many layers in a row have the same width."""
    return [len(list(group)) for _, group in groupby(dims)]


def stage_ends(layers: int, stages: int) -> list[int]:
    """The last layer of each of some equal parts of the depth.

    Args:
        layers (int): Number of layers.
        stages (int): Parts, of which there are no more than layers.

    Returns:
        list[int]: Ascending; the last layer comes last.
    """
    stages = min(stages, layers)
    return [(i + 1) * layers // stages - 1 for i in range(stages)]


def _spread(num: int, total: int) -> list[int]:
    """Indices of ``num`` of ``total`` layers, first and last included."""
    if num == 1:
        return [total - 1]
    step = (total - 1) / (num - 1)
    return [int(i * step + 0.5) for i in range(num)]


def resolve_layer_map(
    layer_map: LayerMap,
    student_dims: Sequence[int],
    teacher_dims: Sequence[int],
) -> list[Optional[int]]:
    """The teacher layer that each student layer is initialised from.

    Args:
        layer_map (str | Sequence[int | None]): ``'uniform'`` spreads the
            student's layers evenly over the teacher's, first and last
            included, and stage by stage where both have as many stages;
            ``'first_n'`` pairs them one to one and leaves surplus student
            layers fresh; or one teacher layer (None for fresh) per student
            layer.
        student_dims (Sequence[int]): Width of each student layer.
        teacher_dims (Sequence[int]): Width of each teacher layer.

    Returns:
        list[int | None]: One entry per student layer.

    Raises:
        ValueError: If the map does not fit the two depths.
    """
    num_student, num_teacher = len(student_dims), len(teacher_dims)
    if layer_map == 'uniform':
        ours, theirs = stages_of(student_dims), stages_of(teacher_dims)
        if len(ours) != len(theirs):
            ours, theirs = [num_student], [num_teacher]
        result, start = [], 0
        for mine, other in zip(ours, theirs):
            result += [start + index for index in _spread(mine, other)]
            start += other
        return result
    if layer_map == 'first_n':
        return [i if i < num_teacher else None for i in range(num_student)]
    if isinstance(layer_map, str) or not isinstance(layer_map, Sequence):
        raise ValueError(
            f"layer_map must be 'uniform', 'first_n' or a list, got "
            f'{layer_map!r}'
        )
    resolved = list(layer_map)
    if len(resolved) != num_student or not all(
        index is None or (isinstance(index, int) and 0 <= index < num_teacher)
        for index in resolved
    ):
        raise ValueError(
            f'layer_map {resolved} needs one teacher layer in '
            f'0..{num_teacher - 1}, or None, for each of the {num_student} '
            f'student layers'
        )
    return resolved
