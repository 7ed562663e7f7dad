# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The token mixer of VMamba: scans over a 2-D grid that cross each other.

Paper: VMamba (arXiv 2401.10166). Parameters have the names of the released
checkpoints (``SS2D``). The original exists channel-first (``ln2d``) and
channel-last, with the same names and numbers; tokens are channel-last here.

Each direction has projections and an ``A`` of its own, and all that belongs
to a token is computed from that token. So nothing needs to be permuted but
the order of the scan: one product gives ``delta``, ``B`` and ``C`` of all
directions in raster order.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops import linear, multi_scan, with_fast_linears

from .directional_mixer import DirectionalMixer
from .precision import widened
from .ssm_init import decay_rates, step_size_bias


class CrossScanMixer(DirectionalMixer):
    """Selective SSM over a token grid in several directions, summed.

    The sum is normalised, optionally gated, and projected.

    Args:
        embed_dims (int): Token width ``d_model``.
        directions (Sequence[str]): Registered scan orders. A name may return
            with a suffix, ``('raster', 'raster:2')``. Defaults to row,
            column, and the reverse of each.
        d_state (int): State size N. Defaults to 1.
        expand (float): ``d_inner = int(expand * d_model)``, the original's
            ``ssm_ratio``. Defaults to 1.
        conv_bias (bool): Whether the 3x3 convolution has a bias. Defaults to
            False.
        gated (bool): Whether a gate multiplies the sum; False is ``_noz`` of
            the original. Defaults to False.

    Raises:
        KeyError: If a direction is no registered scan order.
        ValueError: If ``directions`` or a size is not supported.
    """

    def __init__(
        self,
        embed_dims: int,
        directions: Sequence[str] = (
            'raster',
            'column',
            'raster_reverse',
            'column_reverse',
        ),
        d_state: int = 1,
        expand: float = 1.0,
        conv_bias: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__(embed_dims, directions, d_state, expand, gated=gated)
        self.gated = gated
        K, E = len(self.directions), self.d_inner
        self.conv2d = nn.Conv2d(E, E, 3, padding=1, groups=E, bias=conv_bias)
        self.x_proj_weight = nn.Parameter(
            torch.empty(K, self.dt_rank + 2 * d_state, E)
        )
        self.dt_projs_weight = nn.Parameter(torch.empty(K, E, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(K, E))
        self.A_logs = nn.Parameter(torch.empty(K * E, d_state))
        self.Ds = nn.Parameter(torch.empty(K * E))
        self.out_norm = nn.LayerNorm(E)
        self._add_output()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official start values of what mmengine does not initialise."""
        super().reset_parameters()
        self.A_logs.copy_(decay_rates(*self.A_logs.shape))
        nn.init.ones_(self.Ds)
        bound = 1 / math.sqrt(self.d_inner)
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        bound = 1 / math.sqrt(self.dt_rank)
        nn.init.uniform_(self.dt_projs_weight, -bound, bound)
        self.dt_projs_bias.copy_(step_size_bias(self.dt_projs_bias.shape))

    def mix(self, x: Tensor, grid: Grid, merge: bool) -> Tensor:
        """See :meth:`DirectionalMixer.mix`."""
        u, gate = with_fast_linears(self.in_proj, x), None
        if self.gated:
            u, gate = u.chunk(2, dim=-1)
            gate = F.silu(gate)
        u = self.conv2d(u.mT.unflatten(2, grid)).flatten(2).mT
        y = self._scan(F.silu(u), grid, merge)
        y = self.out_norm(y) if merge else self._share_norm(y)
        if gate is None:
            return y
        return y * (gate if merge else gate.unsqueeze(1))

    def _scan(self, u: Tensor, grid: Grid, merge: bool) -> Tensor:
        """Runs all directions.

        Args:
            u (Tensor): Convolved tokens (B, L, d_inner).
            grid (tuple[int, ...]): (h, w).
            merge (bool): Whether to add the directions up.

        Returns:
            Tensor: (B, L, d_inner), or (B, K, L, d_inner), in raster order.
        """
        K, N = len(self.directions), self.d_state
        rows = linear(u, self.x_proj_weight.flatten(0, 1))
        dt, B, C = rows.unflatten(-1, (K, -1)).split(
            [self.dt_rank, N, N], dim=-1
        )
        self.taps.show_maps(B.transpose(1, 2), C.transpose(1, 2), grid)
        # Not one batched product: for the gradient of such small weights,
        # summed over so many tokens, CUDA's takes 100 times as long.
        pairs = zip(dt.unbind(2), self.dt_projs_weight.unbind(0))
        delta = torch.stack([linear(x, weight) for x, weight in pairs])
        return multi_scan(
            u.mT,
            delta.permute(1, 0, 3, 2),
            -torch.exp(widened(self.A_logs)).unflatten(0, (K, -1)),
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            D=widened(self.Ds).unflatten(0, (K, -1)),
            delta_bias=widened(self.dt_projs_bias),
            delta_softplus=True,
            orders=self.sequence_orders(u.shape[1], grid, u.device),
            merge='sum' if merge else 'stack',
        ).mT

    def _share_norm(self, parts: Tensor) -> Tensor:
        """What the norm of the sum makes of each summand.

        Given the statistics of the sum, LayerNorm is linear. They are those
        of the sum, with their gradients; each direction has an equal share in
        the norm's bias.

        Args:
            parts (Tensor): (B, K, L, d_inner).

        Returns:
            Tensor: The same shape; sums to ``out_norm(sum)``.
        """
        norm, centred = self.out_norm, widened(parts)
        centred = centred - centred.mean(-1, keepdim=True)
        whole = centred.sum(1, keepdim=True)
        variance = whole.square().mean(-1, keepdim=True)
        scale = torch.rsqrt(variance + norm.eps) * norm.weight
        shared = centred * scale + norm.bias / parts.shape[1]
        return shared.to(parts.dtype)
