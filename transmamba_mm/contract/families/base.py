# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The row that describes a teacher family, and the registry of all."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

#: All families by name.
FAMILIES: dict[str, 'TeacherFamily'] = {}


class TeacherError(ValueError):
    """A teacher is not known, or lacks what is asked of it."""


class Found(NamedTuple):
    """A Transformer found among parameter names.

    Attributes:
        family (TeacherFamily): Its family.
        prefix (str): What its names start with, e.g. ``'backbone.'``.
        layers (list[str]): Full names of its layers, in depth order.
    """

    family: 'TeacherFamily'
    prefix: str
    layers: list[str]


@dataclass(frozen=True)
class TeacherFamily:
    """How one family of Transformers names its parts.

    All names are relative to the Transformer, wherever it stands in a model.
    Those that start with ``^`` are relative to the model around it: what is
    above ``backbone``.

    Attributes:
        name (str): What to call it in messages.
        layers (str): Name of a layer, with ``{}`` for its number. Two numbers
            (stage and block) are counted through.
        signature (str): A parameter of every layer that tells this family
            from all others.
        outer (dict[str, str]): Module, or parameter, outside the layers to
            its role; see :mod:`transmamba_mm.contract.roles`. A module gives
            the roles ``<role>.weight`` and ``<role>.bias``.
        inner (dict[str, str]): Likewise in a layer. Other than students, a
            teacher has ``qkv``, its fused query, key and value projection,
            and maybe ``mixer_scale`` and ``ffn_scale``, a LayerScale.
        requires (tuple[str, ...]): Parameters outside the layers that it
            must have as well. Defaults to ``()``.
        extra_tokens (tuple[str, ...]): Parameters that hold tokens other
            than patches, each (1, n, C) or (C,). They stand in front.
            Defaults to ``()``.
        head (tuple[str, ...]): Names that the classifier layer may have.
            Defaults to ``()``.
        logits (tuple[str, ...]): Names that the module may have that gives
            the logits, ``''`` for the Transformer itself. Defaults to ``()``.
        mixer (str): In a layer, the module whose output is added to the
            residual stream. Defaults to ``'attn'``.
        mixer_norm (str): In a layer, the norm whose input is the residual
            stream and whose output the attention reads. Defaults to
            ``'norm1'``.
        num_heads (str): In a layer, module and attribute that hold the
            number of heads. Defaults to ``'attn.num_heads'``.
        forbids (tuple[str, ...]): Parameters of a layer that it must not
            have: those of relatives that compute something else. Defaults
            to ``()``.
    """

    name: str
    layers: str
    signature: str
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    requires: tuple[str, ...] = ()
    extra_tokens: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    logits: tuple[str, ...] = ()
    mixer: str = 'attn'
    mixer_norm: str = 'norm1'
    num_heads: str = 'attn.num_heads'
    forbids: tuple[str, ...] = ()
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

    def find(self, names: Iterable[str]) -> list[Found]:
        """Finds Transformers of this family among parameter names."""
        names = list(names)
        found: dict[str, dict[tuple[int, ...], str]] = {}
        for match in filter(None, map(self._pattern.fullmatch, names)):
            prefix, *numbers = match.groups()
            place = tuple(map(int, numbers))
            layer = prefix + self.layers.format(*place)
            found.setdefault(prefix, {})[place] = layer
        return [
            Found(self, prefix, [layers[place] for place in sorted(layers)])
            for prefix, layers in found.items()
            if all(prefix + name in names for name in self.requires)
            and not any(
                f'{layer}.{name}' in names
                for layer in layers.values()
                for name in self.forbids
            )
        ]

    def places(self, names: Iterable[str], prefix: str) -> list[str]:
        """Full names of what may be called so; see the class for ``^``."""
        above, backbone, _ = prefix.rpartition('backbone.')
        # Around a backbone, the model's own head comes first.
        outside = [above + name[1:] for name in names if name[0:1] == '^']
        within = [prefix + name for name in names if name[0:1] != '^']
        return (outside if backbone else []) + [x.rstrip('.') for x in within]


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


def find_transformer(
    names: Iterable[str], backbone: Optional[str], where: str
) -> Found:
    """Finds the one known Transformer that is meant.

    Args:
        names (Iterable[str]): Parameter names.
        backbone (str, optional): Name of its module, or of one around it,
            where there are several.
        where (str): What the names belong to, for messages.

    Returns:
        Found: The Transformer.

    Raises:
        TeacherError: If there is none, or more than one.
    """
    names = list(names)
    found = [x for family in FAMILIES.values() for x in family.find(names)]
    if backbone is not None:
        inside = [x for x in found if x.prefix.startswith(f'{backbone}.')]
        named = [x for x in inside if x.prefix == f'{backbone}.']
        found = named or inside
    if len(found) == 1:
        return found[0]
    if found:
        raise TeacherError(
            f'{where} holds several Transformers, '
            f'{[x.prefix.rstrip(".") for x in found]}: say by name which is '
            f'the teacher (teacher or teacher_backbone of a method, backbone '
            f'of a recorder)'
        )
    called = '' if backbone is None else f' called {backbone!r}'
    raise TeacherError(
        f'no known Transformer{called} in {where} (looked for '
        f'{" or ".join(family.example for family in FAMILIES.values())}; it '
        f'starts with {", ".join(names[:3])}). Known are '
        f'{", ".join(FAMILIES)}. Check the checkpoint, or describe another '
        f'one by a row: copy a file of transmamba_mm/contract/families and '
        f'register it, see docs/guides/extending.md'
    )
