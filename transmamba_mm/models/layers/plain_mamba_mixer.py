# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The token mixer of PlainMamba: four scans over a 2-D grid.

Paper: arXiv 2403.17695. Behaviour follows the released code, including two
properties of it that the trained weights depend on and that the golden
vectors pin down:

* only ``u`` is permuted into a direction's order; ``delta``, ``B`` and ``C``
  stay in raster order, so step ``t`` combines the pixel visited at ``t`` with
  the parameters of raster pixel ``t``;
* the bias of ``dt_proj`` enters twice, in the projection and in the scan.
"""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.checks import check_int
from transmamba_mm.contract.scan_orders import order_functions, scan_order
from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops import multi_scan, with_fast_linears
from transmamba_mm.ops.caching import cached_tensors

from .directional_mixer import DirectionalMixer
from .linear import bias_of
from .precision import widened
from .ssm_init import decay_rates, init_step_sizes

# Rows of `direction_Bs`, by the move (rows, columns) that led to a step. The
# first step, and any jump that a registered order may make, take row 0.
_MOVE_ROW = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}


def move_rows(order: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which row of ``direction_Bs`` belongs to each step of a scan.

    Args:
        order (Tensor): (h*w,) raster index visited at each step.
        grid (tuple[int, int]): (h, w).

    Returns:
        Tensor: LongTensor (h*w,): 0 start or jump, 1 right, 2 left, 3 up,
        4 down.
    """
    rows, cols = order // grid[1], order % grid[1]
    moves = torch.stack([rows.diff(), cols.diff()], dim=1)
    result = torch.zeros_like(order)
    for move, row in _MOVE_ROW.items():
        hit = (moves == moves.new_tensor(move)).all(dim=1)
        result[1:].masked_fill_(hit, row)
    return result


@cached_tensors(maxsize=64, depends=order_functions)
def _scan_tables(
    directions: tuple[str, ...], h: int, w: int, device: str
) -> tuple[Tensor, Tensor]:
    """Index tables of K directions on one grid of L tokens.

    Returns:
        tuple[Tensor, Tensor]: ``orders`` (K, L) int32, rows of
        :func:`scan_order`, and ``moves`` (K, L), rows of ``direction_Bs``.
    """
    orders = [scan_order(name, h, w, device=device) for name in directions]
    moves = [move_rows(order, (h, w)) for order in orders]
    return torch.stack(orders).int(), torch.stack(moves)


class PlainMambaMixer(DirectionalMixer):
    """Selective SSM over a token grid in several directions, summed.

    Args:
        embed_dims (int): Token width ``d_model``.
        directions (Sequence[str]): Registered scan orders.
        d_state (int): State size N. Defaults to 16.
        expand (float): ``d_inner = int(expand * d_model)``. Defaults to 2.
        dt_rank (int, optional): Rank of the step-size projection. Defaults
            to None, meaning ``ceil(d_model / 16)``.
        dt_min (float): Lower end of the initial step size. Defaults to 1e-3.
        dt_max (float): Upper end of the initial step size. Defaults to 0.1.
        conv_size (int): Odd side of the depth-wise convolution. Defaults
            to 7.
        conv_bias (bool): Whether that convolution has a bias. Defaults to
            True.
        bias (bool): Whether ``in_proj``/``out_proj`` have one. Defaults to
            True.
        layer_scale (float): Initial value of a learned output scale; 0 for
            none. Defaults to 0.

    Raises:
        ValueError: If ``conv_size`` is even, or a size is not supported.
    """

    def __init__(
        self,
        embed_dims: int,
        directions: Sequence[str],
        d_state: int = 16,
        expand: float = 2,
        dt_rank: Optional[int] = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        conv_size: int = 7,
        conv_bias: bool = True,
        bias: bool = True,
        layer_scale: float = 0.0,
    ) -> None:
        super().__init__(
            embed_dims, directions, d_state, expand, dt_rank, bias
        )
        if check_int('conv_size', conv_size) % 2 == 0:
            raise ValueError(f'conv_size must be odd, got {conv_size}')
        self.conv2d = nn.Conv2d(
            self.d_inner,
            self.d_inner,
            conv_size,
            padding=conv_size // 2,
            groups=self.d_inner,
            bias=conv_bias,
        )
        self.x_proj = nn.Linear(
            self.d_inner, self.dt_rank + 2 * d_state, bias=False
        )
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.step_sizes = dt_min, dt_max
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.direction_Bs = nn.Parameter(torch.empty(5, d_state))
        self._add_output(bias, layer_scale)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """See :meth:`DirectionalMixer.reset_parameters`."""
        super().reset_parameters()
        init_step_sizes(self.dt_proj, *self.step_sizes)
        self.A_log.copy_(decay_rates(*self.A_log.shape))
        nn.init.ones_(self.D)
        nn.init.trunc_normal_(self.direction_Bs, std=0.02)

    def sequence_orders(
        self, length: int, grid: Grid, device: torch.device
    ) -> Tensor:
        """See :meth:`DirectionalMixer.sequence_orders`."""
        return _scan_tables(self.directions, *grid, str(device))[0]

    def mix(self, x: Tensor, grid: Grid, merge: bool) -> Tensor:
        """See :meth:`DirectionalMixer.mix`."""
        u, z = with_fast_linears(self.in_proj, x).chunk(2, dim=-1)
        u = u.transpose(1, 2).unflatten(2, grid)
        u = F.silu(self.conv2d(u)).flatten(2).transpose(1, 2)
        gate = F.silu(z)
        scanned = self._scan(u, grid, 'sum' if merge else 'stack')
        # One gate for all directions: cheaper than to pass z to the scan.
        return (gate if merge else gate.unsqueeze(1)) * scanned

    def _scan(self, u: Tensor, grid: Grid, merge: str) -> Tensor:
        """Runs all directions.

        Args:
            u (Tensor): Convolved tokens (B, L, d_inner), raster order.
            grid (tuple[int, ...]): (h, w).
            merge (str): ``'sum'`` or ``'stack'``.

        Returns:
            Tensor: Their sum (B, L, d_inner), or each, (B, K, L, d_inner), in
            raster order.
        """
        orders, moves = _scan_tables(self.directions, *grid, str(u.device))
        dt, B, C = with_fast_linears(self.x_proj, u).split(
            [self.dt_rank, self.d_state, self.d_state], dim=-1
        )
        B = B.unsqueeze(1) + self.direction_Bs[moves]  # (B, K, L, N)
        self.taps.show_maps(B, C, grid)
        y = multi_scan(
            u.mT,
            with_fast_linears(self.dt_proj, dt).mT,
            -torch.exp(widened(self.A_log)),
            B.mT,
            C.mT,
            D=widened(self.D),
            delta_bias=widened(bias_of(self.dt_proj, dt)),
            delta_softplus=True,
            orders=orders,
            by_step=True,
            merge=merge,
        )
        return y.mT
