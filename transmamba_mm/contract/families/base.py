# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The row that describes a teacher family, and the registry of all."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from torch import Tensor, nn

from ..linear import is_linear
from ..patch_grid import noted_grid
from ..records import Grid

#: All families by name.
FAMILIES: dict[str, 'TeacherFamily'] = {}


class TeacherError(ValueError):
    """A teacher is not known, or lacks what is asked of it."""


@dataclass(frozen=True)
class TeacherFamily:
    """How one family of Transformers names its parts.

    All names are relative to the Transformer, wherever it stands in a model.
    Those that start with ``^`` are relative to the model around it: what is
    above :attr:`around`. Weights are copied from a model only if the row
    accounts for all tensors of the Transformer, and their shapes agree; what
    it does not name computes something else.

    Attributes:
        name (str): What to call it in messages.
        layers (str): Name of a layer, with ``{}`` for its number. Two numbers
            (stage and block) are counted through.
        signature (str): A parameter of every layer by which its layers are
            found.
        outer (dict[str, str]): Module, or parameter, outside the layers to
            its role; see :mod:`transmamba_mm.contract.roles`. A module gives
            the roles ``<role>.weight`` and ``<role>.bias``. Other than
            students, a teacher may have ``pooled_norm``, a norm between
            pooling and head, which stands in for a missing ``final_norm``.
            An ``embed`` is the head as well, if there is no other.
        inner (dict[str, str]): Likewise in a layer. Other than students, a
            teacher has ``qkv``, its fused query, key and value projection,
            maybe with biases of its own for two of them, ``q_bias`` and
            ``v_bias``, and maybe ``mixer_scale`` and ``ffn_scale``, a
            LayerScale. To be copied, all but biases and scales must be there.
        ignores (tuple[str, ...]): Regular expressions of further tensors,
            outside the layers or in one, that need no counterpart: what is
            copied is right without them. Defaults to ``()``.
        requires (tuple[str, ...]): Optional parameters of a layer, a scale,
            that a file, which tells no classes, must have all the same.
            Defaults to ``()``.
        layer_classes (tuple[str, ...]): Classes whose ``forward`` a layer
            may have, by full name; relatives may have the same parameters.
            Defaults to ``()``, any.
        not_copied (str): Why its weights are not copied, only its sites are
            read. Defaults to ``''``: they are.
        extra_tokens (tuple[str, ...]): Parameters that hold tokens other
            than patches, each (1, n, C) or (C,). They stand in front.
            Defaults to ``()``.
        grid (str, optional): Module and attribute that hold the patch grid
            (h, w) of the position embedding. Defaults to None: none does.
        around (str): How a model around calls the Transformer. Defaults to
            ``'backbone.'``.
        head (tuple[str, ...]): Modules that may be, or hold, the classifier
            layer. Defaults to ``()``.
        before_head (tuple[str, ...]): Modules that may stand between the
            pooled tokens and the head. Defaults to ``()``.
        logits (tuple[str, ...]): Names that the module may have that gives
            the logits, ``''`` for the Transformer itself. Defaults to ``()``.
        mixer (str): In a layer, the module whose output, times the
            ``mixer_scale`` outside of it, is added to the residual stream.
            Defaults to ``'attn'``.
        mixer_norm (str): In a layer, the norm whose input is the residual
            stream and whose output the attention reads. Defaults to
            ``'norm1'``.
        num_heads (str): In a layer, module and attribute that hold the
            number of heads; ``''`` where nobody need know. Defaults to
            ``'attn.num_heads'``.
        attention_extras (tuple[str, ...]): What attention computes with
            beside queries, keys and values, where no parameter of it tells.
            Defaults to ``()``.
    """

    name: str
    layers: str
    signature: str
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    ignores: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    layer_classes: tuple[str, ...] = ()
    not_copied: str = ''
    extra_tokens: tuple[str, ...] = ()
    grid: Optional[str] = None
    around: str = 'backbone.'
    head: tuple[str, ...] = ()
    before_head: tuple[str, ...] = ()
    logits: tuple[str, ...] = ()
    mixer: str = 'attn'
    mixer_norm: str = 'norm1'
    num_heads: str = 'attn.num_heads'
    attention_extras: tuple[str, ...] = ()
    _pattern: re.Pattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        layer = re.escape(self.layers).replace(r'\{\}', r'(\d+)')
        end = re.escape(f'.{self.signature}')
        pattern = re.compile(rf'((?:.+\.)?){layer}{end}')
        object.__setattr__(self, '_pattern', pattern)

    @property
    def example(self) -> str:
        """str: The parameter that the family is recognised by."""
        return f'{self.layers.replace("{}", "0")}.{self.signature}'

    def find(self, names: Iterable[str]) -> list['Found']:
        """Finds what may be Transformers of this family by their names."""
        found: dict[str, list[tuple[int, ...]]] = {}
        for match in filter(None, map(self._pattern.fullmatch, names)):
            prefix, *numbers = match.groups()
            found.setdefault(prefix, []).append(tuple(map(int, numbers)))
        return [
            Found(self, prefix, tuple(sorted(places)))
            for prefix, places in found.items()
        ]

    def places(self, names: Iterable[str], prefix: str) -> list[str]:
        """Full names of what may be called so; see the class for ``^``."""
        above, within, _ = prefix.rpartition(self.around)
        # Around a backbone, the model's own head comes first.
        outside = [above + name[1:] for name in names if name[0:1] == '^']
        inside = [prefix + name for name in names if name[0:1] != '^']
        return (outside if within else []) + [x.rstrip('.') for x in inside]


class Found(NamedTuple):
    """A Transformer found among parameter names.

    Attributes:
        family (TeacherFamily): Its family.
        prefix (str): What its names start with, e.g. ``'backbone.'``.
        places (tuple[tuple[int, ...], ...]): Numbers of its layers, in depth
            order.
    """

    family: TeacherFamily
    prefix: str
    places: tuple[tuple[int, ...], ...]

    @property
    def layers(self) -> list[str]:
        """list[str]: Full names of its layers, in depth order."""
        pattern = self.prefix + self.family.layers
        return [pattern.format(*place) for place in self.places]

    @property
    def is_language_model(self) -> bool:
        """bool: Whether it embeds tokens of a text."""
        return 'embed' in self.family.outer.values()

    def roles(
        self,
        tensors: Mapping[str, Tensor],
        modules: Optional[Mapping[str, nn.Module]] = None,
    ) -> dict[str, str]:
        """Full name of the parameter in each role that there is."""
        named = {}
        for leaf in ('', '.weight', '.bias'):
            for name, role in self.family.outer.items():
                named[role + leaf] = self.prefix + name + leaf
            for i, layer in enumerate(self.layers):
                for name, role in self.family.inner.items():
                    full = f'{layer}.{name}{leaf}'
                    named[f'layers.{i}.{role}{leaf}'] = full
        head, _ = self.head(tensors, modules)
        if head is not None:
            named['head.weight'] = f'{head}.weight'
            named['head.bias'] = f'{head}.bias'
        return {role: key for role, key in named.items() if key in tensors}

    def num_extra_tokens(self, tensors: Mapping[str, Tensor]) -> int:
        """Tokens of the Transformer that are no patches."""
        held = [self.prefix + name for name in self.family.extra_tokens]
        return sum(
            tensors[name].numel() // tensors[name].shape[-1]
            for name in held
            if name in tensors
        )

    def grid(
        self,
        tensors: Mapping[str, Tensor],
        modules: Optional[Mapping[str, nn.Module]],
    ) -> Optional[Grid]:
        """Patch grid of its position embedding, if model or file tell."""
        if self.family.grid is None:
            return None
        path, _, attribute = self.family.grid.rpartition('.')
        path = self.prefix + path
        if modules is None:
            return noted_grid(tensors, path)
        grid = getattr(modules[path], attribute)
        return None if grid is None else tuple(grid)

    def head(
        self,
        tensors: Mapping[str, Tensor],
        modules: Optional[Mapping[str, nn.Module]],
    ) -> tuple[Optional[str], str]:
        """The one linear layer that maps tokens to scores.

        Returns:
            tuple[str | None, str]: Its full name; else None and why not.
        """
        family = self.family
        for place in family.places(family.head, self.prefix):
            layers = _modules_in(place, tensors)
            if not layers:
                continue
            between = [
                module
                for name in family.places(family.before_head, self.prefix)
                for module in _modules_in(name, tensors)
            ]
            between += self._norms(tensors)[1:]
            weight = tensors.get(f'{layers[0]}.weight')
            linear = len(layers) == 1 and weight is not None
            if modules is None:  # mmpretrain's of cosines
                linear &= not layers[0].endswith('norm_product')
            else:
                linear &= is_linear(modules[layers[0]])
            if not linear or weight.dim() != 2:
                shown = ', '.join(layers[:3])
                return None, f"the teacher's head is no linear layer: {shown}"
            if between or weight.shape[1] != self._width(tensors):
                reads = (
                    between[0] if between else f'{weight.shape[1]} channels'
                )
                return None, (
                    f"the teacher's head reads {reads}, not the pooled tokens"
                )
            return layers[0], ''
        for name, role in family.outer.items():
            if role == 'embed':
                return self.prefix + name, ''  # they share their weights
        return None, 'the teacher has no head'

    def _norms(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Norms after the last layer: of all tokens, of what is pooled."""
        named = [
            self.prefix + name
            for name, role in self.family.outer.items()
            if role in ('final_norm', 'pooled_norm')
        ]
        return [name for name in named if f'{name}.weight' in tensors]

    def _width(self, tensors: Mapping[str, Tensor]) -> int:
        """Width of the residual stream after the last layer."""
        inner = self.family.inner.items()
        norm = next(name for name, role in inner if role == 'mixer_norm')
        return tensors[f'{self.layers[-1]}.{norm}.weight'].numel()


def _modules_in(place: str, tensors: Iterable[str]) -> list[str]:
    """Modules with tensors at or below a place."""
    within = [name for name in tensors if name.startswith(f'{place}.')]
    modules = dict.fromkeys(name.rpartition('.')[0] for name in within)
    # Another head, which reads the distillation token.
    return [name for name in modules if not name.endswith('head_dist')]


def register(found: TeacherFamily) -> TeacherFamily:
    """Adds a family to :data:`FAMILIES`.

    Args:
        found (TeacherFamily): The family.

    Returns:
        TeacherFamily: The same.

    Raises:
        KeyError: If there is one of that name.
    """
    if found.name in FAMILIES:
        raise KeyError(f'there is a teacher family {found.name!r} already')
    FAMILIES[found.name] = found
    return found
