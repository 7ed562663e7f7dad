# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A teacher's tensors by role, from a live model or from a file."""

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Optional, Union

import torch
from torch import Tensor, nn

from transmamba_mm.checkpoints import LazyTensors

from .families import TeacherError, find_transformer
from .functions import Function, functions_of
from .roles import split_role


@dataclass(frozen=True)
class TeacherWeights:
    """A teacher's tensors by role.

    Attributes:
        family (str): Name of the recognised family.
        tensors (MutableMapping[str, Tensor]): Role to tensor.
        names (dict[str, str]): Role to the teacher's parameter name.
        num_extra_tokens (int): Leading entries of its position embedding
            that belong to class and similar tokens.
        known_grid (tuple[int, int], optional): (h, w) of the position
            embedding. Defaults to None, unknown.
        grid_is_told (bool): Whether the model, or what it noted in its
            state dict, told the grid; else it is taken for square. Defaults
            to False.
        notes (dict[str, str]): Module role to why there is none.
        functions (dict[str, Function]): Module role to what it computes, of
            norms and FFNs, if known.
    """

    family: str
    tensors: MutableMapping[str, Tensor]
    names: dict[str, str]
    num_extra_tokens: int
    known_grid: Optional[tuple[int, int]] = None
    grid_is_told: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """tuple[int, ...]: Width of the residual stream at each layer."""
        return tuple(
            self.tensors[f'layers.{i}.mixer_norm.weight'].numel()
            for i in range(self.num_layers)
        )

    @property
    def embed_dims(self) -> int:
        """int: Width of the residual stream, the widest where it varies."""
        return max(self.layer_dims)

    @property
    def num_layers(self) -> int:
        """int: Number of layers."""
        layers = {split_role(role)[0] for role in self.tensors}
        return len(layers - {None})

    @property
    def grid(self) -> tuple[int, int]:
        """tuple[int, int]: (h, w) of the position embedding.

        Raises:
            TeacherError: If it is not known.
        """
        if self.known_grid is None:
            total = self.tensors['pos_embed'].shape[1]
            raise TeacherError(
                f"the teacher's position embedding has "
                f'{total - self.num_extra_tokens} patch positions (of '
                f'{total}), which form no one square grid, and its tensors '
                f'do not tell another. {GIVE_MODEL}'
            )
        return self.known_grid

    def as_in(self, model: 'TeacherWeights') -> 'TeacherWeights':
        """The same, with what a model for these tensors tells beside them.

        Norms and activations if it has the same parameters, the grid if it
        has as many positions.
        """
        told = self
        if self.names.keys() == model.names.keys():
            told = replace(self, functions=model.functions)
        ours, theirs = (x.tensors.get('pos_embed') for x in (self, model))
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return told
        return replace(
            told,
            num_extra_tokens=model.num_extra_tokens,
            known_grid=model.known_grid,
            grid_is_told=model.grid_is_told,
        )


#: What to do where tensors alone do not tell.
GIVE_MODEL = (
    'Give the model itself: teacher=dict(...) of SubcloneInitializer, or '
    'read_teacher(model)'
)


def read_teacher(
    teacher: Union[nn.Module, Mapping[str, Tensor]],
    backbone: Optional[str] = None,
) -> TeacherWeights:
    """Recognises a Transformer and names its tensors by role.

    A model tells more than its tensors do: the classes of its layers, what
    its norms and FFNs compute, and the grid of its position embedding.
    A state dict made while this package is imported notes the grid; of
    others, it is taken for square.

    Args:
        teacher (nn.Module | Mapping[str, Tensor]): A teacher, or its state
            dict, with or without a prefix.
        backbone (str, optional): Name of its module, for models that hold
            several Transformers. Defaults to None, the only one.

    Returns:
        TeacherWeights: The tensors by role, on the CPU; a model's are copied.

    Raises:
        TeacherError: If no known family fits.
    """
    modules, where, state = None, 'this checkpoint', teacher
    if isinstance(teacher, nn.Module):
        modules, where = dict(teacher.named_modules()), type(teacher).__name__
        # Not `state_dict`, whose names are not always those of the modules.
        state = dict([*teacher.named_parameters(), *teacher.named_buffers()])
    found = find_transformer(state, backbone, where, modules)
    names = found.roles(state, modules)
    tensors: MutableMapping[str, Tensor]
    if isinstance(state, LazyTensors):
        tensors = state.renamed(names)
    else:
        tensors = {
            role: on_cpu(state[key].detach(), modules is not None)
            for role, key in names.items()
        }
    for role, dims in (('pos_embed', 3), ('cls_token', 3)):
        if role in tensors:
            shape = tensors[role].shape
            tensors[role] = tensors[role].view(
                *(1,) * (dims - len(shape)), *shape
            )
    for layer in range(len(found.layers)):
        _fuse_biases(f'layers.{layer}', tensors, names)
    _fold_layer_scale(tensors, names)
    for leaf in ('weight', 'bias'):
        ours, role = f'final_norm.{leaf}', f'pooled_norm.{leaf}'
        if role in tensors:
            value, name = tensors.pop(role), names.pop(role)
            # Its affine part is the same before and after the mean.
            tensors.setdefault(ours, value)
            names.setdefault(ours, name)
    extra, told = 0, found.grid(state, modules)
    grid = told
    if 'pos_embed' in tensors:
        extra, grid = _positions(
            tensors['pos_embed'].shape[1], found.num_extra_tokens(state), told
        )
    return TeacherWeights(
        found.family.name,
        tensors,
        names,
        extra,
        grid,
        told is not None,
        {'head': found.head(state, modules)[1]},
        functions_of(names, modules),
    )


def on_cpu(tensor: Tensor, of_model: bool) -> Tensor:
    """A tensor on the CPU; one without values as it is.

    Args:
        tensor (Tensor): The tensor.
        of_model (bool): Whether it is a model's, which may change before it
            is used: it is copied then.

    Returns:
        Tensor: The tensor.
    """
    return tensor if tensor.is_meta else tensor.to('cpu', copy=of_model)


def _positions(
    total: int, extra: int, grid: Optional[tuple[int, int]]
) -> tuple[int, Optional[tuple[int, int]]]:
    """How many positions are of other tokens, and the grid of all others.

    Either all tokens have a position or the patches alone.
    """
    counts = dict.fromkeys((extra, 0))
    if grid is not None:
        fitting = [n for n in counts if total - n == math.prod(grid)]
        if not fitting:
            raise TeacherError(
                f"the teacher's position embedding has {total} entries, which "
                f'are not those of its {grid[0]}x{grid[1]} patches, nor of '
                f'these and {extra} other tokens'
            )
        return fitting[0], grid
    sides = {n: math.isqrt(total - n) for n in counts if total > n}
    square = {n: s for n, s in sides.items() if s * s == total - n}
    if len(square) != 1:
        return extra, None
    ((count, side),) = square.items()
    return count, (side, side)


def _fuse_biases(
    layer: str,
    tensors: MutableMapping[str, Tensor],
    names: dict[str, str],
) -> None:
    """Makes biases of queries and values one, with zeros for the keys."""
    query = tensors.pop(f'{layer}.q_bias', None)
    value = tensors.pop(f'{layer}.v_bias', None)
    name = names.pop(f'{layer}.q_bias', None)
    names.pop(f'{layer}.v_bias', None)
    if query is not None:
        bias = torch.cat([query, torch.zeros_like(query), value])
        tensors[f'{layer}.qkv.bias'] = bias
        names[f'{layer}.qkv.bias'] = name


def _fold_layer_scale(
    tensors: MutableMapping[str, Tensor], names: dict[str, str]
) -> None:
    """Multiplies a LayerScale into the projection in front of it.

    Students have none; the projection alone would be many times too large.
    """
    for role in [role for role in tensors if role.endswith('_scale')]:
        gamma = tensors.pop(role)
        names.pop(role)
        stem = role[: -len('_scale')] + '_out'
        weight, bias = f'{stem}.weight', f'{stem}.bias'
        tensors[weight] = gamma.unsqueeze(1) * tensors[weight]
        if bias in tensors:
            tensors[bias] = gamma * tensors[bias]
