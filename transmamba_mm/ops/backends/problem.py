# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What a scan backend is asked to compute, in one canonical form."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

#: Fields of :class:`ScanProblem` which may have gradients, in their order.
TENSORS = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
#: Those which have a value per token and channel, and per token and state.
TOKENS, COEFFICIENTS = ('u', 'delta', 'z'), ('B', 'C')


class ScanProblem(NamedTuple):
    """Selective scans in K directions over the same tokens.

    Shapes are written with K where an axis has size 1 (all directions share
    the tensor) or K (each has its own).  Tensors have any strides; stride 1
    along D (N for ``B`` and ``C``) is the fast case.  All were checked.

    Step t of direction k visits token ``p = orders[k, s]`` (``p = s`` without
    orders), where ``s = L - 1 - t`` if ``reverse[k]``, else ``s = t``::

        q  = t if by_step else p
        dt = softplus(delta[q] + delta_bias)   # softplus only if asked for
        h  = exp(dt * A) * h + dt * B[q] * u[p]
        y[p] = ((C[q] * h).sum(N) + D * u[p]) * silu(z[p])

    A backend returns

    * ``out``, contiguous, in ``u.dtype``: ``y`` of all directions, (B, K, L,
      D), or their sum, (B, 1, L, D), if ``merge``; in token order;
    * ``last_state``: ``h`` after the last step, (B, K, D, N), contiguous, in
      :attr:`wide_dtype`;
    * ``states``: what its backward pass needs, contiguous, of the shape
      ``states_shape(p)`` in :attr:`wide_dtype`, or of shape (0,) if not
      ``keep``.

    Its backward pass gets ``grad_out``, shaped like ``out`` with any strides
    (also 0), and ``needs``, eight bools for the tensors in the order of the
    fields.  It returns eight gradients, None where not needed, contiguous,
    each with the shape and dtype of its tensor here (so that what is shared
    by the directions has the sum over them).

    Attributes:
        u: input, (B, K, L, D).
        delta: step sizes, (B, K, L, D).
        A: decay rates, (K, D, N).
        B: input weights, (B, K, G, L, N): group g serves the channels
            ``[g * D / G, (g + 1) * D / G)``.  Constant in time: (D, N).
        C: output weights, as ``B``.  If neither is constant, both have the
            same G.
        D: skip weights, (K, D), or None.
        z: gate, (B, K, L, D), or None.
        delta_bias: (K, D), or None.
        delta_softplus: whether the step sizes pass through softplus, which
            is the identity above 20.
        orders: int32, (K, L), contiguous, or None.  Each row was checked to
            be a permutation.  It is a copy that nobody changes, the same
            tensor for the same orders.
        reverse: K bools.
        by_step: whether ``delta``, ``B`` and ``C`` are indexed by step
            instead of by token.
        merge: whether ``out`` is the sum over the directions.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Optional[Tensor]
    z: Optional[Tensor]
    delta_bias: Optional[Tensor]
    delta_softplus: bool
    orders: Optional[Tensor]
    reverse: tuple[bool, ...]
    by_step: bool
    merge: bool

    @property
    def tensors(self) -> tuple[Optional[Tensor], ...]:
        """The tensors which may have gradients, named in :data:`TENSORS`."""
        return self[: len(TENSORS)]

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """``(B, K, L, D, N)``."""
        batch, _, length, channels = self.u.shape
        K = len(self.reverse)
        return batch, K, length, channels, self.A.shape[2]

    @property
    def groups(self) -> int:
        """G, 1 if both ``B`` and ``C`` are constant."""
        if self.B.dim() == 5:
            return self.B.shape[2]
        return self.C.shape[2] if self.C.dim() == 5 else 1

    @property
    def wide_dtype(self) -> torch.dtype:
        """Dtype of the computation: float64 for float64, else float32."""
        is_double = self.u.dtype == torch.float64
        return torch.float64 if is_double else torch.float32

    def new_out(self) -> Tensor:
        """Return storage for ``out``."""
        batch, K, length, channels, _ = self.sizes
        K = 1 if self.merge else K
        return self.u.new_empty(batch, K, length, channels)

    def new_last_state(self) -> Tensor:
        """Return storage for ``last_state``."""
        batch, K, _, channels, N = self.sizes
        return self.u.new_empty(batch, K, channels, N, dtype=self.wide_dtype)
