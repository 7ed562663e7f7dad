# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The token mixer of language models: Mamba's one causal scan.

Papers: Mamba (arXiv 2312.00752), Falcon Mamba (arXiv 2410.05355). Parameters
have the names of the released checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.contract.sequences import TokenMasks
from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops import (
    selective_scan,
    selective_state_step,
    with_fast_linears,
)

from .bidirectional_mixer import BidirectionalMixer
from .linear import is_plain
from .precision import widened

#: A step size before softplus which makes it exactly 0: such a token leaves
#: the state as it is. All floating-point types have this number.
NO_STEP = -1e4


@dataclass
class MixerState:
    """All that a mixer knows of the tokens before; changed in place.

    Attributes:
        conv (Tensor): The last inputs of the convolution, (B, d_inner,
            d_conv - 1).
        ssm (Tensor): States (B, K, d_inner, N) of the K scans, in float32 at
            least.
    """

    conv: Tensor
    ssm: Tensor

    def select(self, index: Tensor) -> None:
        """Keeps the sequences (B',) of the batch, in place."""
        self.conv, self.ssm = self.conv[index], self.ssm[index]


def zeroed(x: Tensor, keep: Optional[Tensor]) -> Tensor:
    """Tokens (B, L, C), zero where ``keep`` (B, L) is False."""
    return x if keep is None else x.masked_fill(~keep.unsqueeze(-1), 0)


class MambaMixer(BidirectionalMixer):
    """Mamba's mixer for padded batches, with a state to decode with.

    Padding neither enters the convolution nor moves the state, so padding on
    the left changes nothing, as in transformers' Mamba.

    Args:
        embed_dims (int): Token width ``d_model``.
        norm_bc_dt (float, optional): ``eps`` of an RMSNorm without weights of
            what step sizes, ``B`` and ``C`` are made of; Falcon Mamba has one
            of 1e-6. Defaults to None, no norm.
        conv_std (float, optional): Draw the convolution from N(0,
            ``conv_std``), as the TransMamba paper does with 1, in place of
            PyTorch's way. Defaults to None.
        **kwargs: Further arguments of :class:`BidirectionalMixer`.

    Raises:
        ValueError: If a size is not supported.
    """

    def __init__(
        self,
        embed_dims: int,
        norm_bc_dt: Optional[float] = None,
        conv_std: Optional[float] = None,
        **kwargs: Any,
    ) -> None:
        self.norm_bc_dt = norm_bc_dt
        self.conv_std = conv_std
        super().__init__(embed_dims, 'none', **kwargs)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """See :meth:`DirectionalMixer.reset_parameters`."""
        super().reset_parameters()
        if self.conv_std is not None:
            nn.init.normal_(self.conv1d.weight, std=self.conv_std)

    def new_state(self, batch: int) -> MixerState:
        """The state before the first token.

        Args:
            batch (int): Number of sequences B.

        Returns:
            MixerState: All zeros.
        """
        # Of no Linear, which may be quantised.
        weight = self.conv1d.weight
        # Not weight.new_zeros: weights may be shared among processes.
        like = dict(dtype=weight.dtype, device=weight.device)
        conv = torch.zeros(
            batch, self.d_inner, self.conv1d.kernel_size[0] - 1, **like
        )
        ssm = torch.zeros(
            batch, self._num_scans, self.d_inner, self.d_state, **like
        )
        return MixerState(conv, widened(ssm))

    @property
    def _num_scans(self) -> int:
        return 1

    def writes(self, masks: Optional[TokenMasks]) -> Optional[Tensor]:
        """Which tokens (B, L) move the state; None for all."""
        return None if masks is None else masks.valid

    def mix(
        self,
        x: Tensor,
        grid: Grid,
        merge: bool,
        masks: Optional[TokenMasks] = None,
        state: Optional[MixerState] = None,
    ) -> Tensor:
        """See :meth:`DirectionalMixer.mix`.

        Args:
            x (Tensor): Tokens (B, L, embed_dims).
            grid (tuple[int, ...]): (L,).
            merge (bool): Whether the axis of directions is left out.
            masks (TokenMasks, optional): What the tokens are.
            state (MixerState, optional): One before the first token; it is
                moved behind the last one.
        """
        u, z = with_fast_linears(self.in_proj, x).chunk(2, dim=-1)
        valid = None if masks is None else masks.valid
        u = zeroed(u, valid)
        if state is not None:
            width = state.conv.shape[2]
            # Zeros in front, where there are fewer tokens.
            state.conv.copy_(F.pad(u.mT, (width, 0))[..., u.shape[1] :])
        u = zeroed(self._convolved(u), valid)
        y = self._scan(u, z, self.writes(masks), grid, state)
        return y if merge else y.unsqueeze(1)

    def _scan(
        self,
        u: Tensor,
        z: Tensor,
        writes: Optional[Tensor],
        grid: Grid,
        state: Optional[MixerState],
    ) -> Tensor:
        """Gated output (B, L, d_inner) of convolved tokens of that shape."""
        dt, B, C, bias = self._steps(u, self.x_proj, self.dt_proj)
        self.taps.show_maps(B, C, grid)
        y, last = selective_scan(
            u.mT,
            without_steps(dt, writes).mT,
            self._decay(self.A_log),
            B.mT,
            C.mT,
            D=widened(self.D),
            z=z.mT,
            delta_bias=widened(bias),
            delta_softplus=True,
            return_last_state=True,
        )
        if state is not None:
            state.ssm[:, 0].copy_(last)
        return y.mT

    @staticmethod
    def _decay(A_log: Tensor) -> Tensor:
        return -torch.exp(widened(A_log))

    def _projected(self, u: Tensor, x_proj: nn.Module) -> Sequence[Tensor]:
        """See :meth:`BidirectionalMixer._projected`."""
        parts = super()._projected(u, x_proj)
        if self.norm_bc_dt is None:
            return parts
        return [
            F.rms_norm(widened(x), x.shape[-1:], eps=self.norm_bc_dt).to(x)
            for x in parts
        ]

    # ----------------------------------------------------------- decoding

    def step(self, x: Tensor, state: MixerState) -> Tensor:
        """Mixes one more token into each sequence.

        Args:
            x (Tensor): Tokens (B, embed_dims).
            state (MixerState): That of the tokens before; it is moved on.

        Returns:
            Tensor: (B, embed_dims).
        """
        u, z = with_fast_linears(self.in_proj, x).chunk(2, dim=-1)
        window = torch.cat([state.conv.to(u), u.unsqueeze(2)], dim=2)
        state.conv.copy_(window[..., 1:])
        y = self._step(self._convolve_last(window), z, state)
        out = with_fast_linears(self.out_proj, y)
        return out if self.gamma is None else out * self.gamma

    def _convolve_last(self, window: Tensor) -> Tensor:
        """Convolution and SiLU of the last token (B, d_inner) of a window."""
        if is_plain(self.conv1d, nn.Conv1d):
            u = (window * self.conv1d.weight.squeeze(1)).sum(2)
            u = u if self.conv1d.bias is None else u + self.conv1d.bias
        else:
            u = self.conv1d(window)[..., window.shape[2] - 1]
        return F.silu(u)

    def _step(self, u: Tensor, z: Tensor, state: MixerState) -> Tensor:
        dt, B, C, bias = self._steps(u, self.x_proj, self.dt_proj)
        return selective_state_step(
            state.ssm[:, 0],
            u,
            dt,
            self._decay(self.A_log),
            B,
            C,
            D=widened(self.D),
            z=z,
            delta_bias=widened(bias),
            delta_softplus=True,
        )


def without_steps(dt: Tensor, writes: Optional[Tensor]) -> Tensor:
    """Step sizes (B, L, d_inner) that only some tokens (B, L) have."""
    if writes is None:
        return dt
    return dt.masked_fill(~writes.unsqueeze(-1), NO_STEP)
