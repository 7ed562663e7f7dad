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
from collections import OrderedDict
from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor, nn

from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops import linear, multi_scan
from transmamba_mm.ops.caching import cached_tensors

from ..checks import check_int
from .directional_mixer import DirectionalMixer
from .precision import widened
from .ssm_init import decay_rates, step_size_bias

_ACTIVATIONS = {
    'silu': nn.SiLU,
    'gelu': nn.GELU,
    'relu': nn.ReLU,
    'sigmoid': nn.Sigmoid,
}


def build_activation(name: str) -> nn.Module:
    """Builds an activation by its name in VMamba's settings.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(
            f'unknown activation {name!r}; choose from '
            f'{", ".join(_ACTIVATIONS)}'
        )
    return _ACTIVATIONS[name]()


class ConvNorm(nn.Sequential):
    """A depth-wise 3x3 convolution of tokens, after an optional LayerNorm.

    Args:
        dims (int): Token width.
        norm (bool): Whether LayerNorm comes first.
    """

    def __init__(self, dims: int, norm: bool) -> None:
        # Numbered as in the checkpoints.
        modules = OrderedDict()
        if norm:
            modules['0'] = nn.LayerNorm(dims)
        modules['2' if norm else '1'] = nn.Conv2d(
            dims, dims, 3, padding=1, groups=dims, bias=False
        )
        super().__init__(modules)

    @property
    def norm(self) -> Optional[nn.LayerNorm]:
        """nn.LayerNorm, optional: What comes before the convolution."""
        return self[0] if len(self) == 2 else None

    @property
    def conv(self) -> nn.Conv2d:
        """nn.Conv2d: The convolution."""
        return self[-1]

    def convolve(self, x: Tensor, grid: Grid) -> Tensor:
        """Convolves tokens (..., h*w, C), without the norm."""
        maps = x.flatten(0, -3).mT.unflatten(2, grid)
        maps = self.conv(maps.to(self.conv.weight.dtype))
        return maps.flatten(2).mT.unflatten(0, x.shape[:-2])

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Maps raster tokens (B, h*w, C) to the same shape."""
        x = x if self.norm is None else self.norm(x)
        return self.convolve(x, grid)


def _build_out_norm(kind: Union[bool, str], dims: int) -> nn.Module:
    """Builds what follows the sum of the directions."""
    if kind is True:
        return nn.LayerNorm(dims)
    if kind is False:
        return nn.Identity()
    if kind in ('dwconv3', 'cnorm'):
        return ConvNorm(dims, norm=kind == 'cnorm')
    raise ValueError(
        f"out_norm must be True, False, 'dwconv3' or 'cnorm', got {kind!r}; "
        f'softmax and sigmoid cannot be shared out among the directions'
    )


@cached_tensors(maxsize=64)
def _orders(
    directions: tuple[str, ...], h: int, w: int, device: str
) -> tuple[Tensor]:
    """A (K, L) tensor, the same one at every call for a grid."""
    orders = [scan_order(name, h, w, device=device) for name in directions]
    return (torch.stack(orders).int(),)


class CrossScanMixer(DirectionalMixer):
    """Selective SSM over a token grid in several directions, summed.

    The sum is normalised, optionally activated and gated, and projected.

    Args:
        embed_dims (int): Token width ``d_model``.
        directions (Sequence[str]): Registered scan orders. A name may return
            with a suffix, ``('raster', 'raster:2')``. Defaults to row,
            column, and the reverse of each.
        d_state (int): State size N. Defaults to 1.
        expand (float): ``d_inner = int(expand * d_model)``, the original's
            ``ssm_ratio``. Defaults to 1.
        dt_rank (int, optional): Rank of the step-size projection. Defaults
            to None, meaning ``ceil(d_model / 16)``.
        conv_size (int): Odd side of the depth-wise convolution; 0 or 1 for
            none. Defaults to 3.
        conv_bias (bool): Whether that convolution has a bias. Defaults to
            False.
        gated (bool): Whether a gate multiplies the sum; False is ``_noz`` of
            the original. Defaults to False.
        gate_act (bool): Whether the gate passes the activation; False is
            ``_nozact``. Defaults to True.
        out_norm (bool | str): Whether to normalise the sum (LayerNorm);
            False is ``_onnone``. Or ``'dwconv3'``, a depth-wise 3x3
            convolution instead (``_ondwconv3``), or ``'cnorm'``, that after
            LayerNorm (``_oncnorm``). Defaults to True.
        out_act (bool): Whether GELU follows that norm; True is ``_oact``.
            Defaults to False.
        act (str): Activation of the convolved tokens and the gate:
            ``'silu'``, ``'gelu'``, ``'relu'`` or ``'sigmoid'``. Defaults to
            ``'silu'``.
        ssm_init (str): Start values. ``'v0'`` are Mamba's; ``'v1'`` draws
            ``A_logs`` from a normal distribution and step sizes near
            softplus(0), ``'v2'`` sets ``A`` to -1. Defaults to ``'v0'``.
        bias (bool): Whether ``in_proj``/``out_proj`` have one. Defaults to
            False.

    Raises:
        KeyError: If a direction is no registered scan order.
        ValueError: If ``conv_size``, ``directions``, ``act``, ``out_norm``
            or ``ssm_init`` is not supported.
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
        dt_rank: Optional[int] = None,
        conv_size: int = 3,
        conv_bias: bool = False,
        gated: bool = False,
        gate_act: bool = True,
        out_norm: Union[bool, str] = True,
        out_act: bool = False,
        act: str = 'silu',
        ssm_init: str = 'v0',
        bias: bool = False,
    ) -> None:
        super().__init__(
            embed_dims, directions, d_state, expand, dt_rank, bias, gated
        )
        if check_int('conv_size', conv_size, 0) > 1 and conv_size % 2 == 0:
            raise ValueError(f'conv_size must be odd, got {conv_size}')
        self.gated, self.gate_act = gated, gate_act
        self.conv2d = None
        if conv_size > 1:
            self.conv2d = nn.Conv2d(
                self.d_inner,
                self.d_inner,
                conv_size,
                padding=conv_size // 2,
                groups=self.d_inner,
                bias=conv_bias,
            )
        self.act = build_activation(act)
        K, E = len(self.directions), self.d_inner
        self.x_proj_weight = nn.Parameter(
            torch.empty(K, self.dt_rank + 2 * d_state, E)
        )
        self.dt_projs_weight = nn.Parameter(torch.empty(K, E, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(K, E))
        self.A_logs = decay_rates(K * E, d_state)
        self.Ds = nn.Parameter(torch.ones(K * E))
        self.out_norm = _build_out_norm(out_norm, E)
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self._add_output(bias)
        self._draw_start_values(ssm_init)

    @torch.no_grad()
    def _draw_start_values(self, ssm_init: str) -> None:
        """The official start values of what mmengine does not initialise."""
        bound = 1 / math.sqrt(self.d_inner)
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        if ssm_init == 'v0':
            bound = 1 / math.sqrt(self.dt_rank)
            nn.init.uniform_(self.dt_projs_weight, -bound, bound)
            bias = step_size_bias(self.dt_projs_bias.shape)
            self.dt_projs_bias.copy_(bias)
        elif ssm_init == 'v1':
            nn.init.normal_(self.A_logs)
            nn.init.normal_(self.dt_projs_weight, std=0.1)
            nn.init.normal_(self.dt_projs_bias, std=0.1)
        elif ssm_init == 'v2':
            nn.init.zeros_(self.A_logs)
            nn.init.uniform_(self.dt_projs_weight, 0, 0.1)
            nn.init.uniform_(self.dt_projs_bias, 0, 0.1)
        else:
            raise ValueError(
                f"ssm_init must be 'v0', 'v1' or 'v2', got {ssm_init!r}"
            )

    def sequence_orders(
        self, length: int, grid: Grid, device: torch.device
    ) -> Tensor:
        """See :meth:`DirectionalMixer.sequence_orders`."""
        return _orders(self.directions, *grid, str(device))[0]

    def mix(self, x: Tensor, grid: Grid, merge: bool) -> Tensor:
        """See :meth:`DirectionalMixer.mix`."""
        u = self.in_proj(x)
        gate = None
        if self.gated:
            u, gate = u.chunk(2, dim=-1)
            gate = self.act(gate) if self.gate_act else gate
        if self.conv2d is not None:
            u = self.conv2d(u.mT.unflatten(2, grid)).flatten(2).mT
        y = self._scan(self.act(u), grid, merge)
        if not merge:
            y = self._share_output(y, grid)
            return y if gate is None else y * gate.unsqueeze(1)
        if isinstance(self.out_norm, ConvNorm):
            y = self.out_norm(y, grid)
        else:
            y = self.out_norm(y)
        y = self.out_act(y)
        return y if gate is None else y * gate

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

    def _share_output(self, parts: Tensor, grid: Grid) -> Tensor:
        """What norm and activation of the sum make of each summand.

        Given the statistics of the sum, LayerNorm is linear, as is a
        convolution, and ``GELU(y) = y * Phi(y)`` is linear in its first
        factor. Statistics and Phi are those of the sum, with their
        gradients; each direction has an equal share in the norm's bias.

        Args:
            parts (Tensor): (B, K, L, d_inner).
            grid (tuple[int, ...]): (h, w).

        Returns:
            Tensor: The same shape; sums to ``out_act(out_norm(sum))``.
        """
        dtype, parts = parts.dtype, widened(parts)
        whole = parts.sum(1, keepdim=True)
        norm, after = self.out_norm, None
        if isinstance(norm, ConvNorm):
            norm, after = norm.norm, norm.convolve
        if isinstance(norm, nn.LayerNorm):
            parts = parts - parts.mean(-1, keepdim=True)
            whole = whole - whole.mean(-1, keepdim=True)
            variance = whole.square().mean(-1, keepdim=True)
            scale = torch.rsqrt(variance + norm.eps) * norm.weight
            whole = whole * scale + norm.bias
            parts = parts * scale + norm.bias / parts.shape[1]
        if after is not None:
            parts, whole = after(parts, grid), after(whole, grid)
        if isinstance(self.out_act, nn.GELU):
            parts = parts * torch.special.ndtr(whole)
        return parts.to(dtype)
