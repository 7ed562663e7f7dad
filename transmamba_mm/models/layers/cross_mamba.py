# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Cross-Mamba: tokens of one modality read what the other has written.

The TransMamba paper (arXiv 2502.15130, §3.3) has queries ``S_C(x)`` of one
modality, keys ``S_B(x)``, values ``x`` and step sizes ``S_Delta(x)`` of the
other, and does not say how lengths meet. Here they do as in attention: in one
sequence, all tokens read the state, and those of one modality alone write it.
"""

from collections.abc import Iterator
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.contract.sequences import TokenMasks
from transmamba_mm.contract.taps import Grid
from transmamba_mm.ops import selective_scan, selective_state_step

from .mamba_mixer import MambaMixer, MixerState, without_steps
from .precision import widened
from .ssm_init import decay_rates, init_step_sizes


def reversed_runs(mask: Tensor) -> Tensor:
    """An order of tokens in which each run of marked ones is reversed.

    Args:
        mask (Tensor): Bool (B, L).

    Returns:
        Tensor: LongTensor (B, L), its own inverse.
    """
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    gap = F.pad(~mask, (1, 1), value=True)
    starts = place.masked_fill(~(mask & gap[:, :-2]), 0)
    ends = place.masked_fill(~(mask & gap[:, 2:]), mask.shape[1])
    first = starts.cummax(1).values
    last = ends.flip(1).cummin(1).values.flip(1)
    return torch.where(mask, first + last - place, place)


class CrossMamba(MambaMixer):
    """A Mamba whose state is written by the tokens of one modality alone.

    All tokens read it: a token of the other modality has the step size 0,
    which leaves the state as it is, bit for bit. So text, however long, does
    not overwrite what an image has written. Those that write behave as in a
    Mamba; the convolution runs over all. The parameters are those of
    :class:`MambaMixer`, so weights load unchanged.

    Args:
        embed_dims (int): Token width ``d_model``.
        kv (str): Who writes: ``'image'``, or ``'text'``, that is the tokens
            of the question, never those of an answer. Defaults to
            ``'image'``.
        bidirectional_kv (bool): Add a second scan, which runs through each
            image (run of writing tokens) backwards and has ``x_proj``,
            ``dt_proj`` and ``A`` of its own; who does not write reads the
            mean of both. A scan remembers best what it saw last.
            Defaults to False.
        dt_min (float): Lower end of the initial step size, a tenth of
            Mamba's, as an image must be remembered for long. Defaults to
            1e-4.
        dt_max (float): Upper end of the initial step size. Defaults to 1e-2.
        **kwargs: Further arguments of :class:`MambaMixer`.

    Raises:
        ValueError: If ``kv`` or a size is not supported.
    """

    def __init__(
        self,
        embed_dims: int,
        kv: str = 'image',
        bidirectional_kv: bool = False,
        dt_min: float = 1e-4,
        dt_max: float = 1e-2,
        **kwargs: Any,
    ) -> None:
        if kv not in ('image', 'text'):
            raise ValueError(f"kv must be 'image' or 'text', got {kv!r}")
        self.kv = kv
        self.bidirectional_kv = False  # until its parameters are there
        super().__init__(embed_dims, dt_min=dt_min, dt_max=dt_max, **kwargs)
        if bidirectional_kv:
            rows = self.dt_rank + 2 * self.d_state
            self.x_proj_b = nn.Linear(self.d_inner, rows, bias=False)
            self.dt_proj_b = nn.Linear(self.dt_rank, self.d_inner)
            self.A_b_log = nn.Parameter(torch.empty_like(self.A_log))
            self.bidirectional_kv = True
            self._reset_backward()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """See :meth:`DirectionalMixer.reset_parameters`."""
        super().reset_parameters()
        if self.bidirectional_kv:
            self._reset_backward()

    @torch.no_grad()
    def _reset_backward(self) -> None:
        init_step_sizes(self.dt_proj_b, *self.step_sizes)
        self.A_b_log.copy_(decay_rates(*self.A_b_log.shape))

    @property
    def _num_scans(self) -> int:
        return 2 if self.bidirectional_kv else 1

    def writes(self, masks: Optional[TokenMasks]) -> Optional[Tensor]:
        """See :meth:`MambaMixer.writes`.

        Raises:
            ValueError: If it is not known which tokens are a question.
        """
        masks = masks or TokenMasks()
        writes = masks.image
        if self.kv == 'text':
            writes = masks.question
            if writes is None:
                raise ValueError(
                    "Cross-Mamba layers with kv='text' are written by the "
                    'tokens of the question: give question_mask'
                )
        if writes is None or masks.valid is None:
            return writes
        return writes & masks.valid

    def read(
        self,
        queries: Tensor,
        memory: Tensor,
        query_mask: Optional[Tensor] = None,
        memory_mask: Optional[Tensor] = None,
    ) -> Tensor:
        """Two sequences: the queries read what the memory has written.

        Args:
            queries (Tensor): (B, Lq, embed_dims).
            memory (Tensor): (B, Lk, embed_dims), any length.
            query_mask (Tensor, optional): Bool (B, Lq), False on padding.
            memory_mask (Tensor, optional): Bool (B, Lk), False on padding.

        Returns:
            Tensor: (B, Lq, embed_dims).
        """
        x = torch.cat([memory, queries], dim=1)
        valid = torch.cat(
            [
                x.new_ones(tokens.shape[:2], dtype=torch.bool)
                if mask is None
                else mask.bool()
                for tokens, mask in (
                    (memory, memory_mask),
                    (queries, query_mask),
                )
            ],
            dim=1,
        )
        writes = torch.zeros_like(valid)
        writes[:, : memory.shape[1]] = True
        masks = TokenMasks(valid, image=writes, question=writes)
        out = self(x, (x.shape[1],), masks)
        return out[:, memory.shape[1] :]

    def _scan(
        self,
        u: Tensor,
        z: Tensor,
        writes: Optional[Tensor],
        grid: Grid,
        state: Optional[MixerState],
    ) -> Tensor:
        """See :meth:`MambaMixer._scan`."""
        if writes is None:
            writes = u.new_zeros(u.shape[:2], dtype=torch.bool)
        if not self.bidirectional_kv:
            return super()._scan(u, z, writes, grid, state)
        order = reversed_runs(writes).unsqueeze(-1)
        outs, lasts = [], []
        for i, (*tokens, A_log, bias) in enumerate(self._scans(u)):
            if i:
                tokens = [x.take_along_dim(order, 1) for x in tokens]
            else:
                self.taps.show_maps(*tokens[2:], grid)
            u_i, dt, B, C = tokens
            y, last = selective_scan(
                u_i.mT,
                without_steps(dt, writes).mT,
                self._decay(A_log),
                B.mT,
                C.mT,
                delta_bias=widened(bias),
                delta_softplus=True,
                return_last_state=True,
            )
            outs.append(y.mT)
            lasts.append(last)
        if state is not None:
            state.ssm.copy_(torch.stack(lasts, dim=1))
        # Tokens that do not write stand where they are in both orders.
        mean = sum(outs) / len(outs)
        y = torch.where(writes.unsqueeze(-1), outs[0], mean)
        return (y + self.D.to(u) * u) * F.silu(z)

    def _scans(self, u: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Inputs, steps, B, C, ``A_log`` and bias of each scan."""
        yield u, *self._parts(u, self.x_proj, self.dt_proj, self.A_log)
        if self.bidirectional_kv:
            modules = self.x_proj_b, self.dt_proj_b, self.A_b_log
            yield u, *self._parts(u, *modules)

    def _parts(
        self, u: Tensor, x_proj: nn.Module, dt_proj: nn.Module, A_log: Tensor
    ) -> tuple[Tensor, ...]:
        dt, B, C, bias = self._steps(u, x_proj, dt_proj)
        return dt, B, C, A_log, bias

    def _step(self, u: Tensor, z: Tensor, state: MixerState) -> Tensor:
        """See :meth:`MambaMixer._step`; what is generated writes nothing."""
        reads = [
            selective_state_step(
                state.ssm[:, i], u, torch.zeros_like(u), self._decay(A), B, C
            )
            for i, (_, _, B, C, A, _) in enumerate(self._scans(u))
        ]
        return (sum(reads) / len(reads) + self.D.to(u) * u) * F.silu(z)
