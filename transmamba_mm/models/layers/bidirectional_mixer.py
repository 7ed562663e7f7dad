# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The token mixer of Vim and VideoMamba: one scan forward, one backward.

Papers: Vision Mamba (arXiv 2401.09417), VideoMamba (arXiv 2403.06977).
Parameters have the names of the released checkpoints, in which ``_b`` marks
the backward direction.
"""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.checks import check_int
from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops import (
    causal_conv1d_silu,
    linear,
    multi_scan,
    selective_scan,
    with_fast_linears,
)

from .directional_mixer import DirectionalMixer
from .linear import is_plain
from .precision import widened
from .ssm_init import decay_rates, init_step_sizes


class BidirectionalMixer(DirectionalMixer):
    """Selective SSM over a token sequence, forward and backward, summed.

    ``bimamba_type='v2'`` gives each direction a convolution, ``x_proj``,
    ``dt_proj``, ``A`` and ``D`` of its own; ``'v1'`` only an ``A``, so that
    the backward scan reads tokens convolved forward. ``'none'`` scans forward
    alone, as a Mamba of language does.

    Args:
        embed_dims (int): Token width ``d_model``.
        bimamba_type (str): ``'none'``, ``'v1'`` or ``'v2'``. Defaults to
            ``'v2'``.
        d_state (int): State size N. Defaults to 16.
        d_conv (int): Tokens that the convolution sees. Defaults to 4.
        expand (float): ``d_inner = int(expand * d_model)``. Defaults to 2.
        dt_rank (int, optional): Rank of the step-size projection. Defaults
            to None, meaning ``ceil(d_model / 16)``.
        dt_min (float): Lower end of the initial step size. Defaults to 1e-3.
        dt_max (float): Upper end of the initial step size. Defaults to 0.1.
        conv_bias (bool): Whether the convolutions have a bias. Defaults to
            True.
        bias (bool): Whether ``in_proj``/``out_proj`` have one. Defaults to
            False.
        divide_out (bool): Take the mean of the two directions instead of
            their sum, as Vim does and VideoMamba does not. As in the
            original, v1 always takes the sum. Defaults to True.
        layer_scale (float): Initial value of a learned output scale; 0 for
            none. Defaults to 0.

    Raises:
        ValueError: If ``bimamba_type`` or a size is not supported.
    """

    def __init__(
        self,
        embed_dims: int,
        bimamba_type: str = 'v2',
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: Optional[int] = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        conv_bias: bool = True,
        bias: bool = False,
        divide_out: bool = True,
        layer_scale: float = 0.0,
    ) -> None:
        if bimamba_type not in ('none', 'v1', 'v2'):
            raise ValueError(
                f"bimamba_type must be 'none', 'v1' or 'v2', got "
                f'{bimamba_type!r}'
            )
        directions = ('raster', 'raster_reverse')
        if bimamba_type == 'none':
            directions = directions[:1]
        super().__init__(
            embed_dims, directions, d_state, expand, dt_rank, bias
        )
        self.bimamba_type = bimamba_type
        d_conv = check_int('d_conv', d_conv)
        self.divide_out = divide_out and bimamba_type == 'v2'
        self.step_sizes = dt_min, dt_max
        self._add_direction('', d_conv, conv_bias)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        if bimamba_type != 'none':
            self.A_b_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        if bimamba_type == 'v2':
            self._add_direction('_b', d_conv, conv_bias)
        self._add_output(bias, layer_scale)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """See :meth:`DirectionalMixer.reset_parameters`."""
        super().reset_parameters()
        init_step_sizes(self.dt_proj, *self.step_sizes)
        own = dict(self.named_parameters(recurse=False))
        for name in own.keys() & {'A_log', 'A_b_log'}:
            own[name].copy_(decay_rates(*own[name].shape))
        for name in own.keys() & {'D', 'D_b'}:
            nn.init.ones_(own[name])
        if self.bimamba_type == 'v2':
            # Not `init_step_sizes`: the original leaves the backward steps
            # at softplus(0).
            nn.init.zeros_(self.dt_proj_b.bias)
        for projection in (self.in_proj, self.out_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def _add_direction(self, suffix: str, d_conv: int, bias: bool) -> None:
        """Registers the parameters of one direction."""
        modules = dict(
            conv1d=nn.Conv1d(
                self.d_inner,
                self.d_inner,
                d_conv,
                padding=d_conv - 1,
                groups=self.d_inner,
                bias=bias,
            ),
            x_proj=nn.Linear(
                self.d_inner, self.dt_rank + 2 * self.d_state, bias=False
            ),
            dt_proj=nn.Linear(self.dt_rank, self.d_inner),
        )
        for name, module in modules.items():
            self.add_module(name + suffix, module)
        self.register_parameter(
            'D' + suffix, nn.Parameter(torch.empty(self.d_inner))
        )

    def sequence_orders(
        self, length: int, grid: Grid, device: torch.device
    ) -> tuple[Tensor, ...]:
        """See :meth:`DirectionalMixer.sequence_orders`."""
        forward = torch.arange(length, device=device)
        return (forward, forward.flip(0))[: len(self.directions)]

    def mix(self, x: Tensor, grid: Grid, merge: bool) -> Tensor:
        """See :meth:`DirectionalMixer.mix`; only taps see the grid."""
        u, z = with_fast_linears(self.in_proj, x).chunk(2, dim=-1)
        if self.bimamba_type == 'none':
            y = self._scan_forward(u, z, grid)
            return y if merge else y.unsqueeze(1)
        scan = self._scan_v1 if self.bimamba_type == 'v1' else self._scan_v2
        return scan(u, z, grid, merge)

    def _convolved(self, u: Tensor) -> Tensor:
        """Convolves forward, and backward in a layer axis of v2.

        Args:
            u (Tensor): Tokens (B, L, d_inner).

        Returns:
            Tensor: (B, L, d_inner), or (B, 2, L, d_inner) of v2.
        """
        both = self.bimamba_type == 'v2'
        convs = (self.conv1d, self.conv1d_b) if both else (self.conv1d,)
        if not all(is_plain(conv, nn.Conv1d) for conv in convs):
            outs = [
                self._called(*pair, u) for pair in zip(convs, (False, True))
            ]
            return torch.stack(outs, dim=1) if both else outs[0]
        weights = [conv.weight.squeeze(1) for conv in convs]
        biases = [conv.bias for conv in convs]
        if not both:
            return causal_conv1d_silu(u, weights[0], biases[0])
        return causal_conv1d_silu(
            u,
            torch.stack(weights),
            None if biases[0] is None else torch.stack(biases),
            reverse=(False, True),
        )

    @staticmethod
    def _called(conv: nn.Module, reverse: bool, u: Tensor) -> Tensor:
        """A convolution as the module that it is, for what is attached."""
        x = (u.flip(1) if reverse else u).mT
        y = F.silu(conv(x)[..., : x.shape[-1]]).mT
        return y.flip(1) if reverse else y

    def _steps(
        self, u: Tensor, x_proj: nn.Module, dt_proj: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step sizes without bias (B, L, d_inner), B and C (B, L, N), bias.

        The bias (d_inner,) belongs to the scan, which adds it in full
        precision; it is zero where what stands for ``dt_proj`` has added it.
        """
        dt, B, C = self._projected(u, x_proj)
        if is_plain(dt_proj, nn.Linear):
            return linear(dt, dt_proj.weight), B, C, dt_proj.bias
        delta = dt_proj(dt)
        return delta, B, C, delta.new_zeros(self.d_inner)

    def _projected(self, u: Tensor, x_proj: nn.Module) -> Sequence[Tensor]:
        """What step sizes are made of (B, L, dt_rank), B and C (B, L, N)."""
        sizes = [self.dt_rank, self.d_state, self.d_state]
        return with_fast_linears(x_proj, u).split(sizes, dim=-1)

    def _scan_v1(
        self, u: Tensor, z: Tensor, grid: Grid, merge: bool
    ) -> Tensor:
        """Both directions over the same convolved tokens; see _scan_v2."""
        u = self._convolved(u)
        dt, B, C, bias = self._steps(u, self.x_proj, self.dt_proj)
        self.taps.show_maps(B, C, grid)
        A_log = torch.stack([self.A_log, self.A_b_log])
        return multi_scan(
            u.mT,
            dt.mT,
            -torch.exp(widened(A_log)),
            B.mT,
            C.mT,
            D=widened(self.D),
            z=z.mT,
            delta_bias=widened(bias),
            delta_softplus=True,
            reverse=(False, True),
            merge='sum' if merge else 'stack',
        ).mT

    def _scan_v2(
        self, u: Tensor, z: Tensor, grid: Grid, merge: bool
    ) -> Tensor:
        """Runs each direction on a convolution of its own.

        Args:
            u (Tensor): Tokens (B, L, d_inner).
            z (Tensor): Gate before SiLU (B, L, d_inner).
            grid (tuple[int, ...]): Patch grid.
            merge (bool): Whether to add the directions up.

        Returns:
            Tensor: What ``out_proj`` reads, (B, L, d_inner), or each
            direction's summand of it, (B, 2, L, d_inner).
        """
        u = self._convolved(u)
        # Slices would each get a full-size gradient.
        forward, backward = u.unbind(1)
        steps = (
            self._steps(forward, self.x_proj, self.dt_proj),
            self._steps(backward, self.x_proj_b, self.dt_proj_b),
        )
        *pairs, biases = zip(*steps)
        dt, B, C = (torch.stack(pair, dim=1) for pair in pairs)
        self.taps.show_maps(B, C, grid)
        y = multi_scan(
            u.mT,
            dt.mT,
            -torch.exp(widened(torch.stack([self.A_log, self.A_b_log]))),
            B.mT,
            C.mT,
            D=widened(torch.stack([self.D, self.D_b])),
            z=z.mT,
            delta_bias=widened(torch.stack(biases)),
            delta_softplus=True,
            reverse=(False, True),
            merge='sum' if merge else 'stack',
        ).mT
        # In place: no derivative needs the undivided value.
        return y.mul_(0.5) if self.divide_out else y

    def _scan_forward(self, u: Tensor, z: Tensor, grid: Grid) -> Tensor:
        """Gated output (B, L, d_inner) of the only direction."""
        u = self._convolved(u)
        dt, B, C, bias = self._steps(u, self.x_proj, self.dt_proj)
        self.taps.show_maps(B, C, grid)
        return selective_scan(
            u.mT,
            dt.mT,
            -torch.exp(widened(self.A_log)),
            B.mT,
            C.mT,
            D=widened(self.D),
            z=z.mT,
            delta_bias=widened(bias),
            delta_softplus=True,
        ).mT
