# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which channels of the teacher a narrower student keeps.

An axis (see :mod:`.roles`) is shared by many tensors: the residual stream by
nearly all of them, an FFN's hidden axis by two. A criterion scores each
tensor's channels; the scores of an axis are averaged over its tensors, each
normalised by its own mean so that no tensor dominates by scale.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Optional

import torch
from torch import Tensor, nn

from transmamba_mm.contract import Teacher, TeacherWeights
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


def axis_name(axis: str, layer: Optional[int]) -> str:
    """Name of an index set: one residual set, the others per layer."""
    return axis if axis == RESIDUAL else f'layers.{layer}.{axis}'


def _score_tensors(
    teacher: TeacherWeights, measure: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Averages a non-negative measure over the tensors of each axis."""
    sums, counts = {}, defaultdict(int)
    # Streams of several widths have no channels in common to choose from.
    selectable = {RESIDUAL, HIDDEN, INNER}
    if len(set(teacher.layer_dims)) > 1:
        selectable.discard(RESIDUAL)
    for role, tensor in teacher.tensors.items():
        layer, kind = split_role(role)
        for dim, axis in enumerate(AXES.get(kind, ())):
            if axis not in selectable:
                continue
            value = measure(role, tensor).unsqueeze(-1)
            score = value.transpose(0, dim).flatten(1).mean(1)
            score = score / score.mean().clamp(min=1e-12)
            name = axis_name(axis, layer)
            sums[name] = sums[name] + score if name in sums else score
            counts[name] += 1
    return {name: total / counts[name] for name, total in sums.items()}


def score_channels(
    teacher: TeacherWeights,
    criterion: str,
    reference: Optional[TeacherWeights] = None,
    activations: Optional[Mapping[str, Tensor]] = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Scores every channel of every selectable axis; higher is kept.

    Args:
        teacher (TeacherWeights): The fine-tuned teacher.
        criterion (str): ``'least_changed'``, smallest absolute difference to
            the reference (TransMamba §3.2); ``'activation'``, largest mean
            absolute activation (Samragh et al., arXiv 2312.09299);
            ``'magnitude'``, largest mean absolute weight; ``'first'``;
            ``'random'``.
        reference (TeacherWeights, optional): The weights the teacher was
            fine-tuned from, for ``'least_changed'``.
        activations (Mapping[str, Tensor], optional): Result of
            :func:`collect_activations`, for ``'activation'``.
        seed (int): Seed of ``'random'``. Defaults to 0.

    Returns:
        dict[str, Tensor]: Axis name (``'residual'``, ``'layers.0.hidden'``,
        ``'layers.0.inner'``) to a score per channel.

    Raises:
        TransferError: If the criterion is unknown or lacks what it needs.
    """
    if criterion == 'least_changed':
        if reference is None:
            raise TransferError(
                "importance='least_changed' compares the teacher with the "
                'weights it was fine-tuned from: give reference_ckpt, or '
                "choose importance='magnitude', 'activation', 'first' or "
                "'random'"
            )
        for name in ('embed_dims', 'num_layers'):
            ours, theirs = getattr(teacher, name), getattr(reference, name)
            if ours != theirs:
                raise TransferError(
                    f'the reference has {name} {theirs}, the teacher {ours}: '
                    f'reference_ckpt must hold the weights that the teacher '
                    f'was fine-tuned from'
                )
        change = _score_tensors(
            teacher, lambda role, t: _change(role, t, reference)
        )
        return {name: -score for name, score in change.items()}
    if criterion == 'activation':
        if activations is None:
            raise TransferError(
                "importance='activation' needs the teacher model and "
                'training data: use it with a distillation model, or give '
                'the hook the teacher= config'
            )
        return dict(activations)
    magnitude = _score_tensors(teacher, lambda _, t: t.float().abs())
    if criterion == 'magnitude':
        return magnitude
    if criterion == 'first':
        return {
            name: -torch.arange(s.numel()).float()
            for name, s in magnitude.items()
        }
    if criterion == 'random':
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.rand(s.numel(), generator=generator)
            for name, s in magnitude.items()
        }
    raise TransferError(
        f'unknown importance {criterion!r}; choose from {", ".join(CRITERIA)}'
    )


def _change(role: str, tensor: Tensor, reference: TeacherWeights) -> Tensor:
    before = reference.tensors.get(role)
    if before is None or before.shape != tensor.shape:
        # A head for other classes says nothing about the channels.
        return torch.ones_like(tensor, dtype=torch.float32)
    return (tensor.float() - before.float()).abs()


def select(score: Tensor, size: int) -> Tensor:
    """Indices of the ``size`` best channels, ascending.

    Ascending order keeps the teacher's channel order, hence its heads.
    """
    best = torch.topk(score, size).indices
    return best.sort().values


@torch.no_grad()
def collect_activations(
    model: nn.Module,
    batches: Iterable[Tensor],
    backbone: Optional[str] = None,
) -> dict[str, Tensor]:
    """Mean absolute activation per channel of a teacher on calibration images.

    Args:
        model (nn.Module): The teacher; called as ``model(images)``.
        batches (Iterable[Tensor]): Image batches (B, 3, H, W), preprocessed.
        backbone (str, optional): Name of the Transformer's module, for
            models that hold several. Defaults to None, the only one.

    Returns:
        dict[str, Tensor]: Scores by axis name, for :func:`score_channels`.

    Raises:
        TransferError: If there is no batch.
    """
    teacher = Teacher(model, backbone)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = defaultdict(int)
    # What enters each of these is the activation of that axis.
    wanted = {
        'mixer_norm.weight': RESIDUAL,
        'final_norm.weight': RESIDUAL,
        'mixer_out.weight': INNER,
        'ffn_out.weight': HIDDEN,
    }

    def watch(name: str) -> Callable:
        def hook(_, args):
            value = args[0].float().abs().flatten(0, -2).mean(0).cpu()
            # Normalised, so that deep layers do not outweigh early ones.
            value = value / value.mean().clamp(min=1e-12)
            sums[name] = sums[name] + value if name in sums else value
            counts[name] += 1

        return hook

    handles: list = []
    for role in teacher.roles:
        layer, kind = split_role(role)
        if kind in wanted:
            module = teacher.module(role)
            name = axis_name(wanted[kind], layer)
            handles.append(module.register_forward_pre_hook(watch(name)))
    was_training = model.training
    model.eval()
    try:
        for images in batches:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
        nn.Module.train(model, was_training)
    if not sums:
        raise TransferError('no calibration batch was given')
    return {name: total / counts[name] for name, total in sums.items()}
