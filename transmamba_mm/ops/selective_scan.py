# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The selective scan, the operator in the middle of every Mamba block."""

import operator
from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from . import dispatch, transforms
from .checks import check_inputs
from .order_tables import check_order
from .scan_op import differentiable_scan, scan


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    delta_bias: Optional[Tensor] = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    order: Optional[Tensor] = None,
    reverse: bool = False,
    by_step: bool = False,
    backend: str = 'auto',
) -> Union[Tensor, tuple[Tensor, Tensor]]:
    """Run the selective state-space recurrence of Mamba.

    With ``dt = softplus(delta + delta_bias)`` (softplus only if asked for)::

        h[t] = exp(dt[t] * A) * h[t - 1] + dt[t] * B[t] * u[t]    # h[-1] = 0
        y[t] = (sum over N of C[t] * h[t] + D * u[t]) * silu(z[t])

    It computes and accumulates in float32, or float64 if ``u`` is float64,
    also under autocast, and returns ``u.dtype``.  The meaning is that of
    ``mamba_ssm.ops.selective_scan_interface.selective_scan_fn`` for real
    ``A``; here tensors may have any strides.  Channels-last storage, that is
    ``x.transpose(1, 2)`` of a contiguous (B, L, D), is fastest, and is how
    the output is stored.

    Tokens can be visited in another order than they lie in memory.  All
    tensors and the output stay in token order, and no permuted copies need
    be made: step t reads ``u`` and writes ``y`` at token ``order[t]``, or at
    ``order[L - 1 - t]`` with ``reverse``.

    Every input may require grad.  Gradients of gradients are refused, except
    by ``backend='reference'``.  The operator can be compiled: it is one node
    in the graph of torch.compile.

    Args:
        u: input, (B, D, L).
        delta: step sizes, (B, D, L).
        A: decay rates, (D, N), real, negative in every trained model.
        B: input weights: (D, N) constant in time, (B, N, L), or
            (B, G, N, L) where group g serves the contiguous channels
            ``[g * D / G, (g + 1) * D / G)``.
        C: output weights, any of the shapes of ``B``.
        D: skip weights, (D,).  Default None: no skip.
        z: gate, (B, D, L).  Default None: no gate.
        delta_bias: added to ``delta`` before softplus, (D,).  Default None.
        delta_softplus: pass the step sizes through softplus, which is the
            identity above 20.  Default False.
        return_last_state: also return ``h`` after the last step, without
            gradient.  Default False.
        order: token that each step visits, (L,), int32 or int64, a
            permutation.  It is checked once per tensor, so pass the same
            tensor every time.  Default None: the order of memory.
        reverse: visit the tokens backwards.  Default False.
        by_step: ``delta``, ``B`` and ``C`` are read at step t itself, not at
            the token which it visits (PlainMamba permutes only ``u``).  ``z``
            always belongs to the output's token.  Default False.
        backend: name listed by :func:`scan_backends`, or ``'auto'`` to let
            :func:`selected_backend` choose.  Default 'auto'.

    Returns:
        Tensor: (B, D, L), or, with ``return_last_state``, a tuple of that
        and the last state (B, D, N) in the dtype of the computation.

    Raises:
        TypeError: if an input is not a real floating-point tensor.
        ValueError: if a shape or device does not fit, ``order`` is not a
            permutation, or the backend does not exist or do this.
        RuntimeError: if the backend cannot be used on this machine.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    check_inputs(tensors)
    if order is not None:
        check_order('order', order, (u.shape[2],), u.device)
    out, last_state = _run(
        tensors, delta_softplus, order, [reverse], by_step, True, backend
    )
    return (out, last_state[:, 0]) if return_last_state else out


def multi_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    delta_bias: Optional[Tensor] = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    orders: Optional[Tensor] = None,
    reverse: Union[bool, Sequence[bool]] = (False,),
    by_step: bool = False,
    merge: str = 'sum',
    backend: str = 'auto',
) -> Union[Tensor, tuple[Tensor, Tensor]]:
    """Run :func:`selective_scan` in K directions over the same tokens.

    There are as many directions as rows of ``orders``, or as ``reverse`` is
    long.  Each tensor is either shared by all directions or has an axis K;
    what is shared is neither repeated nor permuted in memory by the backends
    that follow orders themselves.

    Args:
        u: input, (B, D, L) or (B, K, D, L).
        delta: step sizes, (B, D, L) or (B, K, D, L).
        A: decay rates, (D, N) or (K, D, N).
        B: input weights: (D, N) constant in time and shared, (B, N, L)
            shared, or (B, K * G, N, L), of direction 0 first all groups, then
            of direction 1.
        C: output weights, any of the shapes of ``B``.
        D: skip weights, (D,) or (K, D).  Default None: no skip.
        z: gate, (B, D, L) or (B, K, D, L).  Default None: no gate.
        delta_bias: (D,) or (K, D).  Default None.
        delta_softplus: pass the step sizes through softplus.  Default False.
        return_last_state: also return the last states.  Default False.
        orders: token that each step visits, (K, L), as ``order`` of
            :func:`selective_scan`.  Default None: the order of memory.
        reverse: whether to visit the tokens backwards, K bools, or one for
            all directions.  Default ``(False,)``.
        by_step: as for :func:`selective_scan`.  Default False.
        merge: ``'sum'`` adds the directions up, ``'stack'`` returns each.
            Default 'sum'.
        backend: as for :func:`selective_scan`.  Default 'auto'.

    Returns:
        Tensor: (B, D, L) for ``'sum'``, (B, K, D, L) for ``'stack'``, stored
        channels-last; with ``return_last_state`` a tuple of that and the last
        states (B, K, D, N).

    Raises:
        TypeError: if an input is not a real floating-point tensor.
        ValueError: if an argument does not fit, or the backend does not exist
            or do this.
        RuntimeError: if the backend cannot be used on this machine.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    reverse = [reverse] if isinstance(reverse, bool) else list(reverse)
    K = len(reverse)
    if orders is not None and isinstance(orders, Tensor) and orders.dim() == 2:
        if K == 1:
            # To torch.compile, the size may be a symbol.
            reverse = reverse * operator.index(orders.shape[0])
        elif orders.shape[0] != K:
            raise ValueError(
                f'reverse: expected one bool or as many as orders has rows, '
                f'{orders.shape[0]}, got {K}'
            )
        K = len(reverse)
    if K == 0:
        raise ValueError('reverse, orders: there must be a direction')
    if merge not in ('sum', 'stack'):
        raise ValueError(f"merge: expected 'sum' or 'stack', got {merge!r}")
    check_inputs(tensors, K)
    if orders is not None:
        check_order('orders', orders, (K, u.shape[-1]), u.device)
    out, last_state = _run(
        tensors,
        delta_softplus,
        orders,
        reverse,
        by_step,
        merge == 'sum',
        backend,
    )
    return (out, last_state) if return_last_state else out


def _run(tensors, softplus, orders, reverse, by_step, merge, backend):
    """Call the operator on checked arguments."""
    if torch.compiler.is_compiling():
        # Context variables and the environment are read inside the operator.
        is_plain_autograd = backend == 'reference'
    else:
        # Of all backends, one has tangents.
        automatic = (
            'reference' if transforms.in_forward_mode() else dispatch.FASTEST
        )
        backend = dispatch.requested(backend, automatic)
        is_plain_autograd = dispatch.is_differentiable(backend)
    arguments = (*tensors, softplus, orders, reverse, by_step, merge)
    if transforms.in_forward_mode() and not is_plain_autograd:
        raise RuntimeError(
            f'scan backend {backend!r} has no tangents (torch.func.jvp, '
            f"jacfwd, forward_ad); use backend='reference', which is slow"
        )
    if is_plain_autograd:
        return differentiable_scan(*arguments, backend)
    keep = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in tensors
    )
    out, last_state, _ = scan(*arguments, keep, backend)
    return out, last_state
