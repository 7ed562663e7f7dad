# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Cutting the mixers of a larger pretrained Mamba to a student's sizes.

Axes of a mixer are shared by its tensors, so what is kept of an axis is the
same in all of them. ``in_proj`` and ``x_proj`` are several projections, one
below the other, of which each is cut for itself.
"""

from collections.abc import Mapping
from functools import partial
from typing import Optional

import torch
from torch import Tensor

from transmamba_mm.contract.roles import INNER, KEEP, RESIDUAL, split_role

from .importance import select

_RANK, _STATE = 'rank', 'state'
_WHOLE = (KEEP,)
#: For each dimension of a mixer's tensors the axes that it consists of.
_DIMS: dict[str, tuple[tuple[str, ...], ...]] = {
    'ssm.in_proj.weight': ((INNER, INNER), (RESIDUAL,)),
    'ssm.in_proj.bias': ((INNER, INNER),),
    'ssm.conv.weight': ((INNER,), _WHOLE, _WHOLE),
    'ssm.conv.bias': ((INNER,),),
    'ssm.x_proj.weight': ((_RANK, _STATE, _STATE), (INNER,)),
    'ssm.dt_proj.weight': ((INNER,), (_RANK,)),
    'ssm.dt_proj.bias': ((INNER,),),
    'ssm.A': ((INNER,), (_STATE,)),
    'ssm.D': ((INNER,),),
    'mixer_out.weight': ((RESIDUAL,), (INNER,)),
    'mixer_out.bias': ((RESIDUAL,),),
}
#: Where the size of each axis is seen.
_SIZES = {
    RESIDUAL: ('ssm.in_proj.weight', 1),
    INNER: ('ssm.D', 0),
    _STATE: ('ssm.A', 1),
    _RANK: ('ssm.dt_proj.weight', 1),
}


def _sizes(shapes: Mapping[str, torch.Size]) -> Optional[dict[str, int]]:
    """Size of each axis by the shapes of a mixer's tensors, if they tell."""
    if not all(
        role in shapes and dim < len(shapes[role])
        for role, dim in _SIZES.values()
    ):
        return None
    return {axis: shapes[role][dim] for axis, (role, dim) in _SIZES.items()}


class Donor:
    """A pretrained Mamba-1, larger than the student.

    Of ``d_inner`` those channels are kept of which ``out_proj`` has the
    largest weights; of the others, which no other model orders, the first.

    Args:
        tensors (Mapping[str, Tensor]): All of its tensors by name.
        names (Mapping[str, str]): Names by role.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], names: Mapping[str, str]
    ) -> None:
        self._tensors, self._names = tensors, names
        self._kept: dict[tuple[int, int], Tensor] = {}

    def cut(
        self,
        kind: str,
        layer: int,
        shape: tuple[int, ...],
        student: Mapping[str, torch.Size],
    ) -> Optional[tuple[partial, str]]:
        """What of a tensor a student takes.

        Args:
            kind (str): Role of the tensor, without its layer.
            layer (int): Layer of the donor.
            shape (tuple[int, ...]): Shape of the student's tensor.
            student (Mapping[str, torch.Size]): Shapes of the tensors of the
                student's mixer by role, without the layer.

        Returns:
            tuple[partial, str] | None: What reads it, and what was cut; None
            where the donor is smaller, or another convolution.
        """
        names = {
            split_role(role)[1]: name
            for role, name in self._names.items()
            if split_role(role)[0] == layer
        }
        theirs = _sizes({k: self._tensors[n].shape for k, n in names.items()})
        ours = _sizes(student)
        if not ours or not theirs or kind not in _DIMS:
            return None
        if any(ours[axis] > theirs[axis] for axis in _SIZES):
            return None
        keeps = {
            axis: torch.arange(ours[axis])
            for axis in (RESIDUAL, _STATE, _RANK)
        }
        keeps[INNER] = self._inner(names, layer, ours[INNER])
        name, cuts = names[kind], {}
        held = self._tensors[name].shape
        if len(held) != len(shape):
            return None
        for dim, axes in enumerate(_DIMS[kind]):
            if axes == _WHOLE:
                if held[dim] != shape[dim]:
                    return None
                continue
            starts = torch.tensor([0] + [theirs[axis] for axis in axes])
            if held[dim] == shape[dim]:
                continue
            cuts[dim] = torch.cat(
                [
                    start + keeps[axis]
                    for start, axis in zip(starts.cumsum(0), axes)
                ]
            )
        note = ', '.join(
            f'{axis} {ours[axis]}/{theirs[axis]}'
            for axis in dict.fromkeys(a for dim in _DIMS[kind] for a in dim)
            if axis in ours and ours[axis] != theirs[axis]
        )
        return partial(self._read, name, cuts), note

    def _read(self, name: str, cuts: Mapping[int, Tensor]) -> Tensor:
        tensor = self._tensors[name]
        for dim, index in cuts.items():
            tensor = tensor.index_select(dim, index)
        return tensor

    def _inner(
        self, names: Mapping[str, str], layer: int, size: int
    ) -> Tensor:
        if (layer, size) not in self._kept:
            out = names.get('mixer_out.weight')
            weight = self._tensors[names['ssm.D']].unsqueeze(0)
            if out is not None:
                weight = self._tensors[out]
            score = weight.float().abs().mean(0)
            self._kept[layer, size] = select(score, size)
        return self._kept[layer, size]
