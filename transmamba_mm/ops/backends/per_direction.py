# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Directions and orders for backends which know neither.

K directions over L tokens of D channels become one scan of K * D channels and
K * G groups over L steps, whose tensors are copies in the order of the
visits.  A single direction in the order of memory is passed on as it is.
"""

from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor

from ..caching import TensorCache, cached_tensors
from ..order_tables import visited_tokens
from .problem import COEFFICIENTS, TENSORS, TOKENS, ScanProblem

_tables = TensorCache()


def forward(
    scan: Callable, p: ScanProblem, keep: bool, wide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a backend's ``forward`` by its scan of a plain problem.

    Args:
        scan: ``forward`` for one direction without orders.
        p: any problem.
        keep: as for a backend.
        wide: whether the copies have the dtype of the computation.
    """
    if is_plain(p):
        return scan(p, keep)
    composed = _Composed(p, wide)
    out, last, states = scan(composed.problem, keep)
    batch, K, _, channels, N = p.sizes
    out = composed.from_steps(out, shared=p.merge).to(p.u.dtype)
    return out, last.view(batch, K, channels, N), states


def backward(
    scan: Callable,
    p: ScanProblem,
    states: Tensor,
    grad_out: Tensor,
    needs: tuple[bool, ...],
    wide: bool,
) -> list[Optional[Tensor]]:
    """Compute a backend's ``backward`` in the same way."""
    if is_plain(p):
        return scan(p, states, grad_out, needs)
    composed = _Composed(p, wide)
    grad_out = composed.to_steps(grad_out, is_permuted=True)
    grads = scan(composed.problem, states, grad_out, needs)
    return [
        None
        if grad is None
        else composed.from_grad(name, grad, x).to(x.dtype).contiguous()
        for name, grad, x in zip(TENSORS, grads, p.tensors)
    ]


def is_plain(p: ScanProblem) -> bool:
    """Tell whether a problem is one scan in the order of memory."""
    return p.orders is None and p.reverse == (False,)


class _Table(NamedTuple):
    """Index tables of K directions of L steps, int64.

    Attributes:
        visits: (K, L), the token of each step.
        steps: (K, L), the step of each token.
        shared: (L * K,), the token of step t and direction k, for tokens
            that the directions share.
        own: (L * K,), the same in (K * L) tokens, each direction's own.
        back: (K * L,), for direction k and token p its row of ``own``.
    """

    visits: Tensor
    steps: Tensor
    shared: Tensor
    own: Tensor
    back: Tensor


def _make_table(visits: Tensor) -> _Table:
    K, length = visits.shape
    steps = visits.argsort(dim=1)
    k = torch.arange(K, device=visits.device).unsqueeze(1)
    return _Table(
        visits,
        steps,
        visits.t().flatten(),
        (visits + k * length).t().flatten(),
        (steps * K + k).flatten(),
    )


@cached_tensors(maxsize=256)
def _table_of_reverse(
    length: int, reverse: tuple[bool, ...], device: torch.device
) -> _Table:
    steps = torch.arange(length, device=device)
    rows = [steps.flip(0) if back else steps for back in reverse]
    return _make_table(torch.stack(rows))


def _table(p: ScanProblem) -> Optional[_Table]:
    if p.orders is not None:
        return _tables.get(
            p.orders,
            p.reverse,
            lambda x: _make_table(visited_tokens(x, p.reverse)),
        )
    if any(p.reverse):
        return _table_of_reverse(p.sizes[2], p.reverse, p.u.device)
    return None


class _Composed:
    """One plain problem made of several directions.

    Attributes:
        problem: it.
    """

    def __init__(self, p: ScanProblem, wide: bool):
        self.batch, self.K, self.length, self.channels, self.N = p.sizes
        self.table = table = _table(p)
        self.dtype = p.wide_dtype if wide else None
        # Whether delta, B and C are read in the order of the visits.
        self.permutes_reads = table is not None and not p.by_step
        reads = self.permutes_reads
        self.problem = ScanProblem(
            self.to_steps(p.u, is_permuted=True),
            self.to_steps(p.delta, reads),
            self._per_channel(p.A),
            self._coefs(p.B),
            self._coefs(p.C),
            self._per_channel(p.D),
            None if p.z is None else self.to_steps(p.z, is_permuted=True),
            self._per_channel(p.delta_bias),
            p.delta_softplus,
            None,
            (False,),
            False,
            True,
        )

    def to_steps(self, x: Tensor, is_permuted: bool) -> Tensor:
        """(B, 1 or K, L, D) by token -> (B, 1, L, K * D) by step."""
        x = x if self.dtype is None else x.to(self.dtype)
        if self.table is None or not is_permuted:
            if self.K == 1:
                return x
            x = x.expand(-1, self.K, -1, -1).transpose(1, 2)
        elif x.shape[1] == 1:
            x = x[:, 0].index_select(1, self.table.shared)
        else:
            x = x.flatten(1, 2).index_select(1, self.table.own)
        return x.reshape(self.batch, 1, self.length, self.K * self.channels)

    def from_steps(self, x: Tensor, shared: bool, permuted=True) -> Tensor:
        """Undo :meth:`to_steps`; if ``shared``, sum over the directions."""
        shape = self.batch, self.K, self.length, self.channels
        if self.table is None or not permuted:
            x = x.view(self.batch, self.length, self.K, self.channels)
            x = x.transpose(1, 2)
        else:
            x = x.view(self.batch, -1, self.channels)
            x = x.index_select(1, self.table.back).view(shape)
        if shared and self.K > 1:
            return x.sum(1, keepdim=True)
        return x.contiguous()

    def from_grad(self, name: str, grad: Tensor, x: Tensor) -> Tensor:
        """Turn a gradient of :attr:`problem` into that of ``x``."""
        if name in TOKENS:
            permuted = name != 'delta' or self.permutes_reads
            return self.from_steps(grad, x.shape[1] == 1, permuted)
        if name not in COEFFICIENTS:
            axis, grad = 0, grad.view(self.K, *x.shape[1:])
        elif x.dim() == 2:
            return grad.view(self.K, *x.shape).sum(0)
        else:
            axis, grad = 1, grad.view(self.batch, self.K, *x.shape[2:])
            if self.permutes_reads:
                grad = self._reorder_coefs(grad, self.table.steps)
        return grad.sum(axis, keepdim=True) if x.shape[axis] == 1 else grad

    def _per_channel(self, x: Optional[Tensor]) -> Optional[Tensor]:
        """(1 or K, D, ...) -> (1, K * D, ...)."""
        if x is None or self.K == 1:
            return x
        return x.expand(self.K, *x.shape[1:]).flatten(0, 1).unsqueeze(0)

    def _coefs(self, x: Tensor) -> Tensor:
        """(B, 1 or K, G, L, N) by token -> (B, 1, K * G, L, N) by step."""
        if x.dim() == 2:
            return x.repeat(self.K, 1)
        x = x if self.dtype is None else x.to(self.dtype)
        x = x.expand(-1, self.K, -1, -1, -1)
        if self.permutes_reads:
            x = self._reorder_coefs(x, self.table.visits)
        return x.flatten(1, 2).unsqueeze(1)

    def _reorder_coefs(self, x: Tensor, index: Tensor) -> Tensor:
        """Reorder the tokens of (B, K, G, L, N)."""
        pairs = zip(x.unbind(1), index.unbind(0))
        return torch.stack([y.index_select(2, i) for y, i in pairs], dim=1)
