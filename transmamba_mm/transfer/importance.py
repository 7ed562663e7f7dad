# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which channels of the teacher a narrower student keeps.

An axis (see :mod:`.roles`) is shared by many tensors: the residual stream by
nearly all of them, an FFN's hidden axis by two. A criterion scores each
tensor's channels; the scores of an axis are averaged over its tensors, each
normalised by its own mean so that no tensor dominates by scale.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Optional, Union

import torch
from torch import Tensor

from transmamba_mm.contract import TeacherWeights
from transmamba_mm.contract.roles import (
    AXES,
    HIDDEN,
    INNER,
    RESIDUAL,
    split_role,
)

from .plan import TransferError

#: Criteria of :func:`score_channels`.
CRITERIA = ('least_changed', 'activation', 'magnitude', 'first', 'random')

#: Scores by axis name, or what measures them once they are needed.
Scores = Union[Mapping[str, Tensor], Callable[[], Mapping[str, Tensor]]]


def axis_name(axis: str, layer: Optional[int]) -> str:
    """Name of an index set: one residual set, the others per layer."""
    return axis if axis == RESIDUAL else f'layers.{layer}.{axis}'


#: Values of a tensor that are scored at once.
_AT_ONCE = 1 << 24


def _axes(teacher: TeacherWeights) -> Iterator[tuple[str, int, str]]:
    """Role, dimension and axis name of all that can be selected."""
    # Streams of several widths have no channels in common to choose from.
    selectable = {RESIDUAL, HIDDEN, INNER}
    if len(set(teacher.layer_dims)) > 1:
        selectable.discard(RESIDUAL)
    widest = teacher.embed_dims
    for role in teacher.tensors:
        layer, kind = split_role(role)
        for dim, axis in enumerate(AXES.get(kind, ())):
            if axis not in selectable:
                continue
            size = teacher.tensors[role].shape[dim]
            if axis == RESIDUAL and size != widest:
                continue  # a head that reads a hidden layer of its own
            yield role, dim, axis_name(axis, layer)


def _score_tensors(
    teacher: TeacherWeights,
    measure: Callable[[str, Tensor, slice], Tensor],
) -> dict[str, Tensor]:
    """Averages a non-negative measure over the tensors of each axis.

    Args:
        teacher (TeacherWeights): The teacher.
        measure (Callable): Gets a role, its tensor and some of its rows, and
            gives the measure of those.

    Returns:
        dict[str, Tensor]: A score per channel by axis name.
    """
    sums, counts = {}, defaultdict(int)
    places = defaultdict(list)
    for role, dim, name in _axes(teacher):
        places[role].append((dim, name))
    for role, found in places.items():
        tensor = teacher.tensors[role]
        means = _means(tensor, partial(measure, role, tensor))
        for dim, name in found:
            score = means[dim] / means[dim].mean().clamp(min=1e-12)
            sums[name] = sums[name] + score if name in sums else score
            counts[name] += 1
    return {name: total / counts[name] for name, total in sums.items()}


def _means(tensor: Tensor, measure: Callable[[slice], Tensor]) -> list[Tensor]:
    """Mean of a measure for each index of each dimension, part by part."""
    rows = len(tensor)
    step = max(1, _AT_ONCE * rows // max(tensor.numel(), 1))
    first, others = [], [0.0] * (tensor.dim() - 1)
    for start in range(0, rows, step):
        part = measure(slice(start, start + step))
        share = len(part) / rows
        first.append(part.flatten(1).mean(1) if part.dim() > 1 else part)
        for dim in range(1, part.dim()):
            mean = part.transpose(0, dim).flatten(1).mean(1)
            others[dim - 1] = others[dim - 1] + share * mean
    return [torch.cat(first), *others]


def score_channels(
    teacher: TeacherWeights,
    criterion: str,
    reference: Optional[TeacherWeights] = None,
    activations: Optional[Scores] = None,
    seed: int = 0,
    changes: Optional[Scores] = None,
) -> dict[str, Tensor]:
    """Scores every channel of every selectable axis; higher is kept.

    Args:
        teacher (TeacherWeights): The fine-tuned teacher.
        criterion (str): ``'least_changed'``, smallest absolute difference to
            the same model before or after a fine-tuning (TransMamba §3.2);
            ``'activation'``, largest mean absolute activation (Samragh et
            al., arXiv 2312.09299); ``'magnitude'``, largest mean absolute
            weight; ``'first'``; ``'random'``.
        reference (TeacherWeights, optional): The weights the teacher was
            fine-tuned from, for ``'least_changed'``.
        activations (Mapping[str, Tensor] | Callable, optional): Result of
            :func:`~.measure.collect_activations`, or what gives it, for
            ``'activation'``.
        seed (int): Seed of ``'random'``. Defaults to 0.
        changes (Mapping[str, Tensor] | Callable, optional): Result of
            :func:`~.measure.collect_changes`, or what gives it, for
            ``'least_changed'`` without a reference.

    Returns:
        dict[str, Tensor]: Axis name (``'residual'``, ``'layers.0.hidden'``,
        ``'layers.0.inner'``) to a score per channel.

    Raises:
        TransferError: If the criterion is unknown or lacks what it needs.
    """
    if criterion == 'least_changed' and reference is not None:
        return score_changes(teacher, reference)
    if criterion in ('least_changed', 'activation'):
        measured = changes if criterion == 'least_changed' else activations
        if measured is None:
            first = criterion == 'least_changed'
            raise TransferError(
                f'importance={criterion!r} needs the teacher model and '
                f'training data: use it with a distillation model, or give '
                f'the hook the teacher= config'
                + (', or give reference_ckpt' if first else '')
                + ", or choose importance='magnitude', 'first' or 'random'"
            )
        return dict(measured() if callable(measured) else measured)
    if criterion == 'magnitude':
        return _score_tensors(
            teacher, lambda _, tensor, rows: tensor[rows].float().abs()
        )
    sizes = {
        name: teacher.tensors[role].shape[dim]
        for role, dim, name in _axes(teacher)
    }
    if criterion == 'first':
        return {
            name: -torch.arange(size).float() for name, size in sizes.items()
        }
    if criterion == 'random':
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.rand(size, generator=generator)
            for name, size in sizes.items()
        }
    raise TransferError(
        f'unknown importance {criterion!r}; choose from {", ".join(CRITERIA)}'
    )


def score_changes(
    teacher: TeacherWeights, reference: TeacherWeights
) -> dict[str, Tensor]:
    """Scores channels by how little they differ from a reference's.

    Args:
        teacher (TeacherWeights): A model.
        reference (TeacherWeights): The same before or after a fine-tuning.

    Returns:
        dict[str, Tensor]: Scores by axis name, at most 0.

    Raises:
        TransferError: If the two differ in width or depth.
    """
    for name in ('embed_dims', 'num_layers'):
        ours, theirs = getattr(teacher, name), getattr(reference, name)
        if ours != theirs:
            raise TransferError(
                f'the reference has {name} {theirs}, the teacher {ours}: '
                f'reference_ckpt must hold the weights that the teacher was '
                f'fine-tuned from'
            )
    change = _score_tensors(
        teacher,
        lambda role, tensor, rows: _change(
            tensor, reference.tensors.get(role), rows
        ),
    )
    return {name: -score for name, score in change.items()}


def _change(tensor: Tensor, before: Optional[Tensor], rows: slice) -> Tensor:
    if before is None or before.shape != tensor.shape:
        # A head for other classes says nothing about the channels.
        return torch.ones_like(tensor[rows], dtype=torch.float32)
    return (tensor[rows].float() - before[rows].float()).abs()


def select(score: Tensor, size: int) -> Tensor:
    """Indices of the ``size`` best channels, ascending.

    Ascending order keeps the teacher's channel order, hence its heads.
    """
    best = torch.topk(score, size).indices
    return best.sort().values
