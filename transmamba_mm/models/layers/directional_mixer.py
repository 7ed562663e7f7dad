# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the mixers of all backbones share.

Every mixer is ``in_proj``, a convolution, ``x_proj`` and ``dt_proj``, scans
in several directions, a gate and ``out_proj``. What differs is the
convolution, what the directions share, and how they are put together; that is
what a subclass of :class:`DirectionalMixer` states.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from transmamba_mm.checks import check_directions, check_int, check_width
from transmamba_mm.contract.scan_orders import order_functions, scan_order
from transmamba_mm.contract.taps import DirectionTaps, Grid
from transmamba_mm.ops import linear, with_fast_linears
from transmamba_mm.ops.caching import cached_tensors

from .linear import bias_of, is_plain


@cached_tensors(maxsize=64, depends=order_functions)
def _scan_orders(
    directions: tuple[str, ...], device: str, *grid: int
) -> tuple[Tensor]:
    """Orders (K, L), the same tensor at every call for a grid."""
    orders = [scan_order(name, *grid, device=device) for name in directions]
    return (torch.stack(orders).int(),)


class DirectionalMixer(nn.Module, ABC):
    """A token mixer whose scan directions add up.

    A subclass calls :meth:`_add_output` when it has registered its own
    parameters, then :meth:`reset_parameters`, and defines :meth:`mix`.

    Args:
        embed_dims (int): Token width ``d_model``.
        directions (Sequence[str]): Registered scan orders. A name may return
            with a suffix, ``('raster', 'raster:2')``.
        d_state (int): State size N. Defaults to 16.
        expand (float): ``d_inner = int(expand * d_model)``. Defaults to 2.
        dt_rank (int, optional): Rank of the step-size projection. Defaults
            to None, meaning ``ceil(d_model / 16)``.
        bias (bool): Whether ``in_proj`` has one. Defaults to False.
        gated (bool): Whether ``in_proj`` gives a gate as well. Defaults to
            True.

    Raises:
        KeyError: If a direction is no registered scan order.
        ValueError: If ``directions`` is empty or names one twice, or
            ``d_state``, ``expand`` or ``dt_rank`` is too small.
    """

    norm_bc_dt: Optional[float] = None

    def __init__(
        self,
        embed_dims: int,
        directions: Sequence[str],
        d_state: int = 16,
        expand: float = 2,
        dt_rank: Optional[int] = None,
        bias: bool = False,
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.directions = check_directions(directions)
        for direction in self.directions:
            scan_order(direction, 1, 1)  # an unknown name fails here
        self.d_inner = check_width(
            'expand (ssm_ratio of VMamba)', expand, embed_dims
        )
        self.d_state = check_int('d_state', d_state)
        if dt_rank is None:
            dt_rank = math.ceil(embed_dims / 16)
        self.dt_rank = check_int('dt_rank', dt_rank, instead=', or None')
        self.in_proj = nn.Linear(
            embed_dims, (2 if gated else 1) * self.d_inner, bias=bias
        )

    def _add_output(
        self, bias: bool = False, layer_scale: float = 0.0
    ) -> None:
        """Registers what follows the scans.

        Args:
            bias (bool): Whether ``out_proj`` has one. Defaults to False.
            layer_scale (float): Initial value of a learned output scale; 0
                for none. Defaults to 0.
        """
        self.out_proj = nn.Linear(self.d_inner, self.embed_dims, bias=bias)
        self.layer_scale = layer_scale
        self.gamma = (
            nn.Parameter(torch.empty(self.embed_dims)) if layer_scale else None
        )
        self.taps = DirectionTaps(self.directions)

    def reset_parameters(self) -> None:
        """Draws start values other than those of the parts.

        A subclass extends it.
        """
        if self.gamma is not None:
            nn.init.constant_(self.gamma, self.layer_scale)

    @abstractmethod
    def mix(self, x: Tensor, grid: Grid, merge: bool, *context) -> Tensor:
        """Runs all of the mixer before ``out_proj``.

        Args:
            x (Tensor): Tokens (B, L, embed_dims).
            grid (tuple[int, ...]): Patch grid.
            merge (bool): Whether to add the directions up.
            *context: What else a mixer of its kind is given.

        Returns:
            Tensor: (B, L, d_inner), or each direction's summand of that,
            (B, K, L, d_inner), in the order of the tokens.
        """

    def sequence_orders(
        self, length: int, grid: Grid, device: torch.device
    ) -> Sequence[Tensor]:
        """The token that each direction visits at each step.

        These are the registered scan orders; where class tokens are scanned
        as well, a mixer has orders of its own.

        Args:
            length (int): Tokens L, class tokens included.
            grid (tuple[int, ...]): Patch grid.
            device (torch.device): Where the result lives.

        Returns:
            Sequence[Tensor]: One integer tensor (L,) per direction, as one
            tensor (K, L) if they are the registered ones.
        """
        return _scan_orders(self.directions, str(device), *grid)[0]

    def forward(self, x: Tensor, grid: Grid, *context) -> Tensor:
        """Mixes tokens.

        Args:
            x (Tensor): Tokens (B, L, embed_dims) in raster order, class
                tokens included.
            grid (tuple[int, ...]): Patch grid, (h, w) or (t, h, w).
            *context: See :meth:`mix`.

        Returns:
            Tensor: (B, L, embed_dims).
        """
        if not any(map(self.taps.active, self.directions)):
            inner = self.mix(x, grid, True, *context)
            out = with_fast_linears(self.out_proj, inner)
            return out if self.gamma is None else out * self.gamma
        # Projecting each direction replaces projecting their sum.
        inner, parts = self._by_direction(x, grid, *context)
        orders = self.sequence_orders(x.shape[1], grid, x.device)
        # unbind: slices would each get a full-size gradient.
        for name, *tokens, order in zip(
            self.directions, inner.unbind(1), parts.unbind(1), orders
        ):
            self.taps.emit(name, *tokens, order, grid)
        out = parts.sum(1)
        bias = bias_of(self.out_proj, inner)
        if bias is not None:
            out = out + (bias if self.gamma is None else bias * self.gamma)
        return out

    def by_direction(self, x: Tensor, grid: Grid, *context) -> Tensor:
        """What each direction adds to the output, but for its bias.

        Args:
            x (Tensor): See :meth:`forward`.
            grid (tuple[int, ...]): See :meth:`forward`.
            *context: See :meth:`mix`.

        Returns:
            Tensor: (B, K, L, embed_dims), in the order of the tokens.
        """
        return self._by_direction(x, grid, *context)[1]

    def _by_direction(
        self, x: Tensor, grid: Grid, *context
    ) -> tuple[Tensor, Tensor]:
        """Each direction before ``out_proj``, and after it."""
        inner = self.mix(x, grid, False, *context)
        if is_plain(self.out_proj, nn.Linear):
            parts = linear(inner, self.out_proj.weight)
        else:
            parts = self.out_proj(inner)
            bias = bias_of(self.out_proj, inner)
            parts = parts if bias is None else parts - bias
        return inner, parts if self.gamma is None else parts * self.gamma
