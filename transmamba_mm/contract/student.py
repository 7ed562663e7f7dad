# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What transfer and distillation may know of a student.

:class:`MambaStudent` is any Mamba: layers that scan in some directions,
parameters that play roles. :class:`GridStudent` adds what patches of images
and videos bring: grids, scan orders over them, class tokens among them. A
backbone subclasses one of them and states these as data; nobody else is
asked about a student.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Optional

from torch import Tensor, nn

from .class_tokens import join_class_tokens, split_class_tokens
from .records import TokenRecord
from .scan_orders import scan_order
from .sites import (
    LOGITS,
    MIXER_INPUTS,
    MIXERS,
    QKV,
    STREAMS,
    TOKENS,
    Captured,
    check_site,
)
from .taps import DirectionTaps, Grid


class MambaStudent(ABC):
    r"""A stack of residual blocks, each around a mixer that scans.

    Attributes:
        directions (tuple[str, ...]): Scan directions, in the order of the
            mixers' parameters.
        layer_dims (tuple[int, ...]): Width ``d_model`` of each mixer, in
            depth order.
        FINAL_NORM (str): Attribute of the norm after the last layer.
        PARAM_ROLES (tuple[tuple[str, str], ...]): ``(pattern, role)`` pairs.
            The first regular expression that matches a parameter name in
            full gives its role in the vocabulary of
            :mod:`transmamba_mm.contract.roles`; ``\\1`` in the role stands
            for the first group. Parameters without a role stay fresh.
    """

    directions: tuple[str, ...] = ()
    layer_dims: tuple[int, ...] = ()
    FINAL_NORM: ClassVar[str] = 'ln1'
    PARAM_ROLES: ClassVar[tuple[tuple[str, str], ...]] = ()

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The residual block around each mixer, in depth order.

        Its first input and its output are the residual stream (B, L, C), the
        second input is the grid of the tokens. Its ``norm`` normalises what
        the mixer reads.
        """

    @abstractmethod
    def mixers(self) -> list[nn.Module]:
        """The mixer of each block, in depth order.

        It maps normalised tokens (B, L, C) and their grid to (B, L, C), has
        ``taps``, which show each direction, and ``by_direction``, which gives
        them apart (B, K, L, C).
        """

    @property
    def num_layers(self) -> int:
        """int: Number of mixers."""
        return len(self.layer_dims)

    def taps(self) -> list[DirectionTaps]:
        """The taps of each mixer, in depth order."""
        return [mixer.taps for mixer in self.mixers()]

    def normalise(self, stream: Tensor) -> Tensor:
        """The residual stream after the last layer, normalised."""
        norm = getattr(self, self.FINAL_NORM)
        # The stream may be wider than the weights.
        return stream if norm is None else norm(stream.to(norm.weight.dtype))

    def mix(self, layer: int, stream: Tensor, grid: Grid) -> Tensor:
        """What one layer's mixer adds to any residual stream.

        Args:
            layer (int): Index of the layer.
            stream (Tensor): Residual stream (B, L, C), as a block reads it.
            grid (tuple[int, ...]): Patch grid.

        Returns:
            Tensor: (B, L, C).
        """
        return self.mixers()[layer](self._normed(layer, stream), grid)

    def mix_apart(self, layer: int, stream: Tensor, grid: Grid) -> Tensor:
        """What each direction adds to any residual stream, but for a bias.

        Args:
            layer (int): Index of the layer.
            stream (Tensor): Residual stream (B, L, C), as a block reads it.
            grid (tuple[int, ...]): Patch grid.

        Returns:
            Tensor: (B, K, L, C), in the order of the tokens.
        """
        mixer = self.mixers()[layer]
        return mixer.by_direction(self._normed(layer, stream), grid)

    def _normed(self, layer: int, stream: Tensor) -> Tensor:
        norm = self.blocks()[layer].norm
        return norm(stream.to(norm.weight.dtype))

    def split(self, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, C) as class tokens (B, n, C) and all others."""
        return tokens[:, :0], tokens

    def joined(self, record: TokenRecord) -> Tensor:
        """A record's tokens as this student would read them (B, L, C)."""
        return record.tokens

    def param_roles(self) -> dict[str, str]:
        """Role of every parameter that has one, by parameter name."""
        roles = {}
        for name, _ in self.named_parameters():
            for pattern, role in self.PARAM_ROLES:
                match = re.fullmatch(pattern, self._name_for_roles(name))
                if match:
                    roles[name] = match.expand(role)
                    break
        return roles

    def _name_for_roles(self, name: str) -> str:
        """A parameter's name as :attr:`PARAM_ROLES` knows it."""
        return name


class GridStudent(MambaStudent):
    """A student of patches on a grid.

    Attributes:
        hierarchical (bool): Whether the mixers work on several grids.
        num_extra_tokens (int): Class tokens in the token sequence; see
            :meth:`class_token_slots` for where they stand.
        patch_embed (nn.Module): Has ``init_out_size``, the grid that a
            position embedding is made for, and, in a hierarchical student,
            ``stride``, the pixels between tokens of the first grid.
    """

    hierarchical: bool = False
    num_extra_tokens: int = 0

    def scan_order(self, direction: str, *grid: int) -> Tensor:
        """The order in which a direction visits the patch tokens.

        Args:
            direction (str): One of :attr:`directions`.
            *grid (int): Patch grid: h, w.

        Returns:
            Tensor: LongTensor permutation of the raster patch indices,
            without class tokens.
        """
        return scan_order(direction, *grid)

    def split(self, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """See :meth:`MambaStudent.split`."""
        return split_class_tokens(tokens, self.class_token_slots(*grid))

    def joined(self, record: TokenRecord) -> Tensor:
        """See :meth:`MambaStudent.joined`; the first class token is used."""
        slots = self.class_token_slots(*record.grid)
        classes = record.classes[:, :1].expand(-1, len(slots), -1)
        return join_class_tokens(classes, record.tokens, slots)

    def class_token_slots(self, *grid: int) -> tuple[int, ...]:
        """Where class tokens stand among the tokens, ascending.

        Token sequences and ``pos_embed`` hold the patches in raster order
        with the class tokens put in at these indices. A backbone with class
        tokens defines this and :meth:`class_token_positions`.
        """
        return ()

    def class_token_positions(
        self, direction: str, *grid: int
    ) -> tuple[int, ...]:
        """Where class tokens stand in a direction's scanned sequence."""
        return ()


class Student:
    """A live student inside a model, as methods may see it.

    Args:
        model (nn.Module): The model.
        backbone (str, optional): Name of the student's module, for models
            that hold several. Defaults to None, the only one.

    Attributes:
        backbone (MambaStudent): The student.

    Raises:
        TypeError: If the model holds none, or several.
    """

    def __init__(
        self, model: nn.Module, backbone: Optional[str] = None
    ) -> None:
        self._model = model
        self._prefix, self.backbone = _find(model, backbone)

    def roles(self) -> dict[str, str]:
        """Roles by parameter name: the backbone's, and the head's.

        The head is the last Linear of ``head`` beside the backbone.
        """
        roles = {
            self._prefix + name: role
            for name, role in self.backbone.param_roles().items()
        }
        head = self._head_name
        linears = [
            name
            for name, module in self._model.named_modules()
            if f'{name}.'.startswith(f'{head}.')
            and isinstance(module, nn.Linear)
        ]
        if linears:
            roles[f'{linears[-1]}.weight'] = 'head.weight'
            roles[f'{linears[-1]}.bias'] = 'head.bias'
        return roles

    @property
    def _head_name(self) -> str:
        return self._prefix.removesuffix('backbone.') + 'head'

    def modules_of(self, site: str) -> dict[str, nn.Module]:
        """The modules that must be watched to read a site.

        Args:
            site (str): One of :data:`~transmamba_mm.contract.sites.SITES`.

        Returns:
            dict[str, nn.Module]: The modules, by the names that
            :meth:`record` knows them by.

        Raises:
            ValueError: If a student has no such site.
        """
        check_site(site)
        if site == LOGITS:
            modules = dict(self._model.named_modules())
            if self._head_name not in modules:
                raise ValueError(
                    f'{type(self._model).__name__} has no '
                    f'{self._head_name!r} that gives logits'
                )
            return {LOGITS: modules[self._head_name]}
        if site == QKV:
            raise ValueError(
                'a student has no queries, keys and values: qkv is a site of '
                'teachers'
            )
        blocks, mixers = self.backbone.blocks(), self.backbone.mixers()
        if site == TOKENS:
            return {'0': blocks[-1]}
        watched = mixers if site in (MIXERS, MIXER_INPUTS) else blocks
        return {str(i): module for i, module in enumerate(watched)}

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
        records = []
        for place, (inputs, output) in seen.items():
            layer, grid = int(place), tuple(inputs[1])
            if site == TOKENS:
                layer = self.backbone.num_layers - 1
                output = self.backbone.normalise(output)
            reads = site in (STREAMS, MIXER_INPUTS)
            tokens = inputs[0] if reads else output
            classes, patches = self.backbone.split(tokens, grid)
            records.append(TokenRecord(layer, patches, grid, classes))
        return records


def _find(model: nn.Module, name: Optional[str]) -> tuple[str, MambaStudent]:
    """Prefix of a model's student, and the student."""
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, MambaStudent)
    }
    kind = type(model).__name__
    if name is not None and name not in found:
        raise TypeError(
            f'{kind} has no transmamba_mm backbone called {name!r}; its '
            f'backbones are {list(found) or "none"}'
        )
    if name is None and len(found) > 1:
        raise TypeError(
            f'expected one transmamba_mm backbone inside {kind}, found '
            f'{len(found)}: say by name which is meant (student_backbone, or '
            f'backbone of a recorder), one of {list(found)}'
        )
    if not found:
        raise TypeError(
            f'expected one transmamba_mm backbone inside {kind}, found 0; a '
            f'student must use a backbone derived from '
            f'transmamba_mm.models.MambaBackbone'
        )
    name = next(iter(found)) if name is None else name
    return f'{name}.' if name else '', found[name]


def find_student(model: nn.Module, name: Optional[str] = None) -> MambaStudent:
    """Finds the student backbone inside a model.

    Args:
        model (nn.Module): The model.
        name (str, optional): Name of the backbone's module, for models that
            hold several. Defaults to None, the only one.

    Returns:
        MambaStudent: The backbone.

    Raises:
        TypeError: If the model holds none, several, or none of that name.
    """
    return _find(model, name)[1]
