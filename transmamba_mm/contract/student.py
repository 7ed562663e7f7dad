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
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .class_tokens import join_class_tokens, split_class_tokens
from .records import TokenRecord
from .scan_orders import scan_order
from .sequences import TokenMasks
from .taps import DirectionTaps, Grid


class MixerBlock:
    """A residual block around a mixer, which may also run alone.

    One of the bases of an ``nn.Module``, whose first input and output are the
    residual stream (B, L, C); the second input is the grid of the tokens. Its
    ``norm`` normalises what the mixer reads.

    Attributes:
        MIXER (str): Attribute that holds the mixer. That maps normalised
            tokens (B, L, C) and their grid to (B, L, C), has ``taps``, which
            show each direction, ``by_direction``, which gives them apart
            (B, K, L, C), ``d_state``, the size N of its state, and
            ``norm_bc_dt``, None unless it normalises B, C and step sizes.
        PASSES (tuple[str, ...]): Methods that run some of the block, beside
            ``forward``.
    """

    MIXER: ClassVar[str] = 'mixer'
    PASSES: ClassVar[tuple[str, ...]] = ('mix', 'mix_apart')

    def mix(self, stream: Tensor, grid: Grid, *context: Any) -> Tensor:
        """What the mixer adds to any residual stream; not the block's pass.

        Args:
            stream (Tensor): Residual stream (B, L, C), as the block reads it.
            grid (tuple[int, ...]): Patch grid.
            *context: What else the block reads.

        Returns:
            Tensor: (B, L, C).
        """
        return self._mixer(self._normed(stream), grid, *context)

    def mix_apart(self, stream: Tensor, grid: Grid) -> Tensor:
        """What each direction adds, (B, K, L, C), but for a bias."""
        return self._mixer.by_direction(self._normed(stream), grid)

    @property
    def _mixer(self) -> nn.Module:
        return getattr(self, self.MIXER)

    def _normed(self, stream: Tensor) -> Tensor:
        return self.norm(stream.to(self.norm.weight.dtype))


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
        hierarchical (bool): Whether the mixers work on several grids.
        num_extra_tokens (int): Class tokens in the token sequence.
        with_cp (bool): Whether blocks, and mixers that run alone, keep only
            their inputs for the backward pass.
    """

    directions: tuple[str, ...] = ()
    layer_dims: tuple[int, ...] = ()
    FINAL_NORM: ClassVar[str] = 'ln1'
    PARAM_ROLES: ClassVar[tuple[tuple[str, str], ...]] = ()
    hierarchical: bool = False
    num_extra_tokens: int = 0
    with_cp: bool = False

    @abstractmethod
    def blocks(self) -> list[MixerBlock]:
        """The residual blocks, in depth order."""

    def mixers(self) -> list[nn.Module]:
        """The mixer of each block, in depth order; see :class:`MixerBlock`.

        Raises:
            TypeError: If a block is none.
        """
        for block in self.blocks():
            if not isinstance(block, MixerBlock):
                raise TypeError(
                    f'{type(block).__name__} of {type(self).__name__} must '
                    f'have transmamba_mm.contract.MixerBlock among its bases'
                )
        return [getattr(block, block.MIXER) for block in self.blocks()]

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

    def mix(
        self, layer: int, stream: Tensor, grid: Grid, *context: Any
    ) -> Tensor:
        """What one layer's mixer adds to any residual stream.

        Args:
            layer (int): Index of the layer.
            stream (Tensor): Residual stream (B, L, C), as a block reads it.
            grid (tuple[int, ...]): Patch grid.
            *context: What else a block reads.

        Returns:
            Tensor: (B, L, C).
        """
        block = self.blocks()[layer]
        if not (self.with_cp and torch.is_grad_enabled()):
            return block.mix(stream, grid, *context)
        args = stream, grid, *context
        return checkpoint(block.mix, *args, use_reentrant=False)

    def mix_record(self, layer: int, record: TokenRecord) -> Tensor:
        """What one layer's mixer adds to the streams of a record.

        Args:
            layer (int): Index of the layer.
            record (TokenRecord): The streams, as wide as the layer.

        Returns:
            Tensor: As :meth:`joined` gives the record's tokens.
        """
        valid = record.valid
        if valid is None:
            return self.mix(layer, self.joined(record), record.grid)
        grid = tuple(valid.shape[1:])
        streams = record.in_sequences()
        mixed = self.mix(layer, streams, grid, TokenMasks(valid))
        return mixed[valid].unsqueeze(0)

    def mix_apart(self, layer: int, stream: Tensor, grid: Grid) -> Tensor:
        """What each direction adds to any residual stream, but for a bias.

        Args:
            layer (int): Index of the layer.
            stream (Tensor): Residual stream (B, L, C), as a block reads it.
            grid (tuple[int, ...]): Patch grid.

        Returns:
            Tensor: (B, K, L, C), in the order of the tokens.
        """
        return self.blocks()[layer].mix_apart(stream, grid)

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

    def class_token_positions(
        self, direction: str, *grid: int
    ) -> tuple[int, ...]:
        """Where class tokens stand in a direction's scanned sequence."""
        return ()

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
        patch_embed (nn.Module): Gives the patch tokens (B, L, C) of images
            and their grid. Has ``init_out_size``, the grid that a position
            embedding is made for.
    """

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
