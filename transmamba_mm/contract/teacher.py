# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What transfer and distillation may know of a teacher.

:func:`read_teacher` names a checkpoint's tensors by role. :class:`Teacher`
is a live model: its sizes, and the places, called sites, that can be read
while it runs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from mmpretrain.models import ImageClassifier, TimmClassifier
from torch import Tensor, nn

from .families import Found, TeacherError, TeacherFamily, find_transformer
from .layer_map import stages_of
from .records import Grid, TokenRecord
from .roles import split_role
from .sites import (
    LAYERS,
    LOGITS,
    MIXER_INPUTS,
    MIXERS,
    QKV,
    STREAMS,
    TEACHER_SITES,
    TOKENS,
    Captured,
    check_site,
)
from .teachers import Teachers, teachers_of


@dataclass(frozen=True)
class TeacherWeights:
    """A teacher's tensors by role.

    Attributes:
        family (str): Name of the recognised family.
        tensors (dict[str, Tensor]): Role to tensor.
        names (dict[str, str]): Role to the teacher's parameter name.
        num_extra_tokens (int): Leading entries of its position embedding
            that belong to class and similar tokens.
    """

    family: str
    tensors: dict[str, Tensor]
    names: dict[str, str]
    num_extra_tokens: int

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
        """tuple[int, int]: (h, w) of the position embedding, square.

        Raises:
            TeacherError: If the patch positions form no square.
        """
        count = self.tensors['pos_embed'].shape[1] - self.num_extra_tokens
        side = math.isqrt(count)
        if not _is_square(count):
            raise TeacherError(
                f"the teacher's position embedding has {count} patch "
                f'positions, which form no square grid to resize from'
            )
        return side, side


def read_teacher(
    state_dict: Mapping[str, Tensor], backbone: Optional[str] = None
) -> TeacherWeights:
    """Recognises a Transformer in a state dict and names its tensors.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of a teacher, with or
            without a prefix.
        backbone (str, optional): Name of its module, for models that hold
            several Transformers. Defaults to None, the only one.

    Returns:
        TeacherWeights: The tensors by role.

    Raises:
        TeacherError: If no known family fits.
    """
    found = find_transformer(state_dict, backbone, 'this checkpoint')
    family = found.family
    names = {
        role: key
        for role, key in _role_names(found, state_dict)
        if key in state_dict
    }
    tensors = {role: state_dict[key] for role, key in names.items()}
    for role, dims in (('pos_embed', 3), ('cls_token', 3)):
        if role in tensors:
            shape = tensors[role].shape
            tensors[role] = tensors[role].view(
                *(1,) * (dims - len(shape)), *shape
            )
    extra = _count_extra(family, found.prefix, state_dict)
    scaled = _fold_layer_scale(tensors, names)
    registers = f'{found.prefix}reg_token' in state_dict
    positions = tensors.get('pos_embed')
    early = scaled or registers
    if early and positions is not None and _is_square(positions.shape[1]):
        # DeiT III, and timm's models with registers, add positions before
        # they add the other tokens.
        extra = 0
    return TeacherWeights(family.name, tensors, names, extra)


def _role_names(
    found: Found, names: Iterable[str]
) -> Iterable[tuple[str, str]]:
    """Role and full name of all parameters that a row tells of."""
    family, prefix = found.family, found.prefix
    for leaf in ('', '.weight', '.bias'):
        for name, role in family.outer.items():
            yield role + leaf, prefix + name + leaf
        for i, layer in enumerate(found.layers):
            for name, role in family.inner.items():
                yield f'layers.{i}.{role}{leaf}', f'{layer}.{name}{leaf}'
    for head in family.places(family.head, prefix):
        if f'{head}.weight' in names:
            yield 'head.weight', f'{head}.weight'
            yield 'head.bias', f'{head}.bias'
            return


def _count_extra(
    family: TeacherFamily, prefix: str, tensors: Mapping[str, Tensor]
) -> int:
    """Tokens of a Transformer that are no patches."""
    return sum(
        tensors[prefix + name].numel() // tensors[prefix + name].shape[-1]
        for name in family.extra_tokens
        if prefix + name in tensors
    )


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def _fold_layer_scale(
    tensors: dict[str, Tensor], names: dict[str, str]
) -> bool:
    """Multiplies a LayerScale into the projection in front of it.

    Students have none; the projection alone would be many times too large.

    Returns:
        bool: Whether there was any.
    """
    scales = [role for role in tensors if role.endswith('_scale')]
    for role in scales:
        gamma = tensors.pop(role)
        names.pop(role)
        stem = role[: -len('_scale')] + '_out'
        weight, bias = f'{stem}.weight', f'{stem}.bias'
        tensors[weight] = gamma.unsqueeze(1) * tensors[weight]
        if bias in tensors:
            tensors[bias] = gamma * tensors[bias]
    return bool(scales)


def _is_sequence_first(layer: nn.Module) -> bool:
    """Whether a layer's tokens are (L, B, C), as PyTorch's attention may."""
    return any(
        isinstance(module, nn.MultiheadAttention) and not module.batch_first
        for module in layer.children()
    )


class Teacher:
    """A live Transformer inside a model, as methods may see it.

    Args:
        model (nn.Module): The model.
        backbone (str, optional): Name of the Transformer's module, for
            models that hold several. Defaults to None, the only one.

    Attributes:
        layer_dims (tuple[int, ...]): Width of the residual stream at each
            layer.
        embed_dims (int): Width after the last layer.
        in_channels (int): Channels of an image.
        num_layers (int): Number of layers.
        num_heads (tuple[int, ...]): Attention heads of each layer.
        num_extra_tokens (int): Class and similar tokens in front.
        patch_size (int): Side of a patch, pixels.
        stride (int): Pixels between patches.
        last_stride (int): Pixels between tokens after the last layer, where
            each stage halves the grid.

    Raises:
        TeacherError: If no known family fits.
    """

    def __init__(
        self, model: nn.Module, backbone: Optional[str] = None
    ) -> None:
        if backbone is None and isinstance(model, Teachers):
            raise TeacherError(
                f'there are the teachers {list(teachers_of(model))}: say by '
                f'teacher=... of a method, or teacher_backbone=... of another '
                f'part, which one it reads'
            )
        # Not `state_dict`, whose names are not always those of the modules.
        self._parameters = dict(model.named_parameters())
        self._modules = dict(model.named_modules())
        self._type = type(model).__name__
        found = find_transformer(self._parameters, backbone, self._type)
        self.family, self._prefix, self.layers = found
        self._names = {
            role: name
            for role, name in _role_names(found, self._parameters)
            if name in self._parameters
        }
        self.num_layers = len(self.layers)
        self.layer_dims = tuple(
            self.parameter(f'layers.{i}.mixer_norm.weight').numel()
            for i in range(self.num_layers)
        )
        self.embed_dims = self.layer_dims[-1]
        self.num_extra_tokens = _count_extra(
            self.family, self._prefix, self._parameters
        )

    # ---------------------------------------------------------- its parts

    @property
    def roles(self) -> tuple[str, ...]:
        """tuple[str, ...]: The roles that its parameters play."""
        return tuple(self._names)

    def parameter(self, role: str) -> Tensor:
        """The parameter of a role.

        Args:
            role (str): The role, e.g. ``'layers.0.mixer_out.weight'``.

        Returns:
            Tensor: The parameter.

        Raises:
            TeacherError: If the teacher has none.
        """
        if role not in self._names:
            raise TeacherError(
                f'the teacher ({self.family.name}) has no {role}'
            )
        return self._parameters[self._names[role]]

    def module(self, role: str) -> nn.Module:
        """The module that a role's parameter belongs to."""
        self.parameter(role)
        return self._modules[self._names[role].rpartition('.')[0]]

    def mixer_out(self, layer: int) -> Tensor:
        """Weight (C, C) that projects attention onto the residual stream."""
        weight = self.parameter(f'layers.{layer}.mixer_out.weight')
        scale = f'layers.{layer}.mixer_scale'
        if scale not in self._names:
            return weight
        return self.parameter(scale).unsqueeze(1) * weight

    def attention_extras(self) -> list[str]:
        """Parameters of its attention beside those that have a role."""
        known, extras = set(self._names.values()), set()
        for layer in range(self.num_layers):
            name = self._names[f'layers.{layer}.qkv.weight']
            # The module with the projection, `attn.qkv`, or its parameter.
            inside = name.removeprefix(f'{self.layers[layer]}.')
            attention = f'{self.layers[layer]}.{inside.split(".")[0]}.'
            extras |= {
                key.removeprefix(attention)
                for key in self._parameters
                if key.startswith(attention) and key not in known
            }
        return sorted(extras)

    @property
    def num_heads(self) -> tuple[int, ...]:
        """tuple[int, ...]: See the class."""
        path, _, attribute = self.family.num_heads.rpartition('.')
        return tuple(
            getattr(self._modules[f'{layer}.{path}'], attribute)
            for layer in self.layers
        )

    @property
    def patch_size(self) -> int:
        """int: See the class."""
        return self.parameter('patch_embed.weight').shape[-1]

    @property
    def in_channels(self) -> int:
        """int: See the class."""
        return self.parameter('patch_embed.weight').shape[1]

    @property
    def stride(self) -> int:
        """int: See the class."""
        return self.module('patch_embed.weight').stride[-1]

    @property
    def last_stride(self) -> int:
        """int: See the class."""
        return self.stride * 2 ** (len(stages_of(self.layer_dims)) - 1)

    # ---------------------------------------------------------- its sites

    def modules_of(self, site: str) -> dict[str, nn.Module]:
        """The modules that must be watched to read a site.

        Args:
            site (str): One of
                :data:`~transmamba_mm.contract.sites.TEACHER_SITES`.

        Returns:
            dict[str, nn.Module]: The modules, by the names that
            :meth:`record` knows them by.

        Raises:
            TeacherError: If the teacher has no such site.
        """
        check_site(site, TEACHER_SITES, 'teacher')
        if site == LOGITS:
            return {LOGITS: self._logits_module()}
        family = self.family
        watched = {'grid': self.module('patch_embed.weight')}
        layers = self.layers[-1:] if site == TOKENS else self.layers
        for i, layer in enumerate(layers):
            # The layer tells the grid where it has one of its own.
            watched[f'{i}.layer'] = self._modules[layer]
            watched[f'{i}.norm'] = self._modules[
                f'{layer}.{family.mixer_norm}'
            ]
            watched[f'{i}.mixer'] = self._modules[f'{layer}.{family.mixer}']
        wanted = {
            TOKENS: 'layer',
            LAYERS: 'layer',
            STREAMS: 'norm',
            MIXER_INPUTS: 'norm',
            QKV: 'norm',
            MIXERS: 'mixer',
        }[site]
        return {
            key: module
            for key, module in watched.items()
            if key == 'grid' or key.endswith(('.layer', f'.{wanted}'))
        }

    def _logits_module(self) -> nn.Module:
        family = self.family
        for name in family.places(family.logits, self._prefix):
            if name in self._modules:
                return self._modules[name]
        raise TeacherError(
            f'{self._type} gives no logits that the row of '
            f'{family.name} knows of: it has none of '
            f'{family.places(family.logits, self._prefix) or family.logits}'
        )

    @torch.no_grad()
    def record(self, site: str, seen: Mapping[str, Captured]) -> Any:
        """Makes a site's record of what was seen.

        Args:
            site (str): The site.
            seen (Mapping[str, Captured]): Inputs and output of each of
                :meth:`modules_of`.

        Returns:
            Tensor | list[TokenRecord]: Logits (B, K), or a record for each
            layer; one for ``'tokens'``.
        """
        if site == LOGITS:
            return seen[LOGITS].output
        first = tuple(seen['grid'].output.shape[2:])
        layers = [self.num_layers - 1]
        if site != TOKENS:
            layers = range(self.num_layers)
        return [
            self._record_layer(site, layer, f'{place}.', first, seen)
            for place, layer in enumerate(layers)
        ]

    def _record_layer(
        self,
        site: str,
        layer: int,
        place: str,
        grid: Grid,
        seen: Mapping[str, Captured],
    ) -> TokenRecord:
        inputs = seen[f'{place}layer'].inputs
        if len(inputs) > 1 and isinstance(inputs[1], tuple):
            grid = inputs[1]
        if site in (TOKENS, LAYERS):
            tokens = seen[f'{place}layer'].output
        elif site == STREAMS:
            tokens = seen[f'{place}norm'].inputs[0]
        elif site == MIXERS:
            tokens = seen[f'{place}mixer'].output
        else:
            tokens = seen[f'{place}norm'].output
        if isinstance(tokens, tuple):
            tokens = tokens[0]  # nn.MultiheadAttention adds its weights
        if _is_sequence_first(self._modules[self.layers[layer]]):
            tokens = tokens.transpose(0, 1)
        if site == QKV:
            role = f'layers.{layer}.qkv'
            bias = self._names.get(f'{role}.bias')
            tokens = F.linear(
                tokens,
                self.parameter(f'{role}.weight'),
                None if bias is None else self._parameters[bias],
            )
        extra = self.num_extra_tokens
        record = TokenRecord(layer, tokens[:, extra:], grid, tokens[:, :extra])
        return self.normalise(record) if site == TOKENS else record

    @torch.no_grad()
    def normalise(self, record: TokenRecord) -> TokenRecord:
        """The residual stream after the last layer, by the final norm."""
        if 'final_norm.weight' not in self._names:
            return record
        norm = self.module('final_norm.weight')
        return replace(
            record, tokens=norm(record.tokens), classes=norm(record.classes)
        )


class Classifier:
    """A classifier of any kind, of which nothing but the logits is known.

    Args:
        model (nn.Module): mmpretrain's ``ImageClassifier`` or
            ``TimmClassifier``.

    Raises:
        TeacherError: If it is another model.
    """

    def __init__(self, model: nn.Module) -> None:
        if isinstance(model, ImageClassifier) and model.with_head:
            self._scores = model.head
        elif isinstance(model, TimmClassifier):
            self._scores = model.model
        else:
            raise TeacherError(
                f'{type(model).__name__} gives no class scores that are '
                f"known: use mmpretrain's ImageClassifier or TimmClassifier"
            )

    def modules_of(self, site: str) -> dict[str, nn.Module]:
        """See :meth:`Teacher.modules_of`; for the logits alone."""
        return {LOGITS: self._scores}

    def record(self, site: str, seen: Mapping[str, Captured]) -> Tensor:
        """See :meth:`Teacher.record`."""
        return seen[LOGITS].output
