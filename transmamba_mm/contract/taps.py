# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Taps: where a mixer shows the output of each scan direction.

A tap is a module that returns its input, so every mmrazor recorder sees it
under a stable name. It counts as active while a forward hook is attached to
it; the mixer computes the tapped tensor only then. A recorder that attaches
its hooks for the recorded pass alone therefore costs nothing elsewhere.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from transmamba_mm.ops import reorder

from .records import Grid


class DirectionTap(nn.Module):
    """Shows one direction's tokens to whoever hooked it.

    Attributes:
        held (bool): Whether the tap counts as active without a hook. Set by
            :func:`recomputation_contexts` alone.
    """

    held = False

    @property
    def active(self) -> bool:
        """bool: Whether the mixer must compute the tapped tensor."""
        # A tracer hooks all modules, but records none of the taps.
        hooked = self._forward_hooks and not torch.jit.is_tracing()
        return self.held or bool(hooked)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Returns ``tokens``; a hook also sees ``grid`` among the inputs.

        Args:
            tokens (Tensor): (B, L, C) in the direction's scan order, class
                tokens included where the mixer scans them.
            grid (tuple[int, ...]): Patch grid, (h, w) or (t, h, w).

        Returns:
            Tensor: The tokens.
        """
        return tokens


class DirectionTaps(nn.Module):
    """The taps of one mixer, two per scan direction.

    ``inner`` shows the gated direction before ``out_proj`` (B, L, d_inner),
    ``out`` the same after it (B, L, d_model), without the output bias. As
    ``out_proj`` is linear, the ``out`` taps of a mixer, each put back into
    raster order, sum to the mixer's output less its bias. One more, ``bc``,
    shows what every direction writes and reads its state with.

    Args:
        directions (Sequence[str]): Names of the scan directions.
    """

    def __init__(self, directions: Sequence[str]) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({d: DirectionTap() for d in directions})
        self.out = nn.ModuleDict({d: DirectionTap() for d in directions})
        self.bc = DirectionTap()

    def active(self, direction: str) -> bool:
        """Whether anybody records this direction."""
        return self.inner[direction].active or self.out[direction].active

    def emit(
        self,
        direction: str,
        inner: Tensor,
        out: Tensor,
        order: Tensor,
        grid: Grid,
    ) -> None:
        """Shows one direction, in its scan order.

        Args:
            direction (str): Name of the direction.
            inner (Tensor): Gated scan output (B, L, d_inner), raster order.
            out (Tensor): The same after ``out_proj`` (B, L, d_model).
            order (Tensor): (L,) raster index visited at each step.
            grid (tuple[int, ...]): Patch grid.
        """
        for tap, tokens in (
            (self.inner[direction], inner),
            (self.out[direction], out),
        ):
            if tap.active:
                tap(reorder(tokens, order), grid)

    def show_maps(self, B: Tensor, C: Tensor, grid: Grid) -> None:
        """Shows B and C of all directions, if anybody records them.

        They go through ``bc`` as one tensor (B, L, K 2 N): for each
        direction B, then C. The order is that of the tokens which they are
        computed from, whatever the direction's.

        Args:
            B (Tensor): (B, L, N), or each direction's, (B, K, L, N).
            C (Tensor): Likewise.
            grid (tuple[int, ...]): Patch grid.
        """
        if not self.bc.active:
            return
        K = len(self.out)
        both = [
            x if x.dim() == 4 else x.unsqueeze(1).expand(-1, K, -1, -1)
            for x in (B, C)
        ]
        maps = torch.stack(both, dim=3)  # (B, K, L, 2, N)
        self.bc(maps.transpose(1, 2).flatten(2), grid)


def active_taps(block: nn.Module) -> list[DirectionTap]:
    """The taps inside a block that somebody records."""
    return [
        module
        for module in block.modules()
        if isinstance(module, DirectionTap) and module.active
    ]


def recomputation_contexts(
    taps: Sequence[DirectionTap],
) -> tuple[AbstractContextManager, AbstractContextManager]:
    """``context_fn`` of ``torch.utils.checkpoint.checkpoint``.

    A recorder has removed its hooks by the time a block is computed again.
    The taps that were active at first are held open then, so that both
    passes do the same.

    Args:
        taps (Sequence[DirectionTap]): The taps that are active.

    Returns:
        tuple: Contexts of the first and of the second pass.
    """
    return contextlib.nullcontext(), _Held(taps)


class _Held(AbstractContextManager):
    """Holds taps open; each backward pass of a graph enters it anew."""

    def __init__(self, taps: Sequence[DirectionTap]) -> None:
        self._taps = taps

    def __enter__(self) -> None:
        for tap in self._taps:
            tap.held = True

    def __exit__(self, *args: object) -> None:
        for tap in self._taps:
            tap.held = False
