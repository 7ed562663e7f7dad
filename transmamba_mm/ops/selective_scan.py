# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The selective scan, the operator in the middle of every Mamba block."""

import contextlib
import math
import sys
from typing import Optional, Union

import torch
from torch import Tensor

from .dispatch import backend_module

_uncompiled = None


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

    Every input may require grad.  Gradients of gradients are refused.

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
        backend: name listed by :func:`scan_backends`, or ``'auto'`` to let
            :func:`selected_backend` choose.  Default 'auto'.

    Returns:
        Tensor: (B, D, L), or, with ``return_last_state``, a tuple of that
        and the last state (B, D, N) in the dtype of the computation.

    Raises:
        TypeError: if an input is not a real floating-point tensor.
        ValueError: if a shape or device does not fit, or there is no such
            backend.
        RuntimeError: if the backend cannot be used on this machine.
    """
    run = _run if 'torch._dynamo' not in sys.modules else _get_uncompiled()
    out, last_state = run(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend
    )
    return (out, last_state) if return_last_state else out


def _run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend):
    check_inputs(u, delta, A, B, C, D, z, delta_bias)
    module = backend_module(u.device, u.dtype, backend)
    B, C = _same_groups(B, C)
    with _no_autocast(u.device.type):
        return module.selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus
        )


def _get_uncompiled():
    """Return :func:`_run` hidden from torch.compile.

    Tracing the loops would unroll them into thousands of nodes; a graph
    break costs microseconds.  ``torch.compiler.disable`` imports the
    compiler, which takes a second, hence only where it is loaded already.
    """
    global _uncompiled
    if _uncompiled is None:
        _uncompiled = torch.compiler.disable(_run)
    return _uncompiled


def _no_autocast(device_type: str):
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _same_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat groups so that B and C, if both vary in time, have as many."""
    if B.dim() == 2 or C.dim() == 2:
        return B, C
    groups_B = B.shape[1] if B.dim() == 4 else 1
    groups_C = C.shape[1] if C.dim() == 4 else 1
    if groups_B == groups_C:
        return B, C
    groups = math.lcm(groups_B, groups_C)
    return _regroup(B, groups), _regroup(C, groups)


def _regroup(x: Tensor, groups: int) -> Tensor:
    x = x.unsqueeze(1) if x.dim() == 3 else x
    return x.repeat_interleave(groups // x.shape[1], dim=1)


def check_inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    delta_bias: Optional[Tensor] = None,
) -> None:
    """Raise unless the inputs fit :func:`selective_scan`.

    Raises:
        TypeError: if an input is not a real floating-point tensor.
        ValueError: if a shape or device does not fit.
    """
    required = {'u': u, 'delta': delta, 'A': A, 'B': B, 'C': C}
    optional = {'D': D, 'z': z, 'delta_bias': delta_bias}
    given = {k: v for k, v in optional.items() if v is not None}
    for name, x in {**required, **given}.items():
        if not isinstance(x, Tensor):
            raise TypeError(
                f'{name}: expected a tensor, got {type(x).__name__}'
            )
        if x.is_complex():
            raise TypeError(
                f'{name}: complex tensors are not supported, got {x.dtype}; '
                f'expected a real floating-point dtype'
            )
        if not x.is_floating_point():
            raise TypeError(
                f'{name}: expected a floating-point dtype, got {x.dtype}'
            )
        if x.device != u.device:
            raise ValueError(
                f'{name}: is on {x.device}, but u is on {u.device}'
            )
    if u.dim() != 3:
        raise ValueError(f'u: expected shape (B, D, L), got {tuple(u.shape)}')
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise ValueError(
            f'A: expected shape (D, N) = ({channels}, N) with N >= 1, '
            f'got {tuple(A.shape)}'
        )
    N = A.shape[1]
    for name, x, letters, shape in (
        ('delta', delta, '(B, D, L)', (batch, channels, length)),
        ('z', z, '(B, D, L)', (batch, channels, length)),
        ('D', D, '(D,)', (channels,)),
        ('delta_bias', delta_bias, '(D,)', (channels,)),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(
                f'{name}: expected shape {letters} = {shape}, '
                f'got {tuple(x.shape)}'
            )
    for name, x in (('B', B), ('C', C)):
        groups = x.shape[1] if x.dim() == 4 else 'G'
        shapes = {
            2: (channels, N),
            3: (batch, N, length),
            4: (batch, groups, N, length),
        }
        if x.shape != shapes.get(x.dim()):
            raise ValueError(
                f'{name}: expected shape (D, N) = {shapes[2]}, '
                f'(B, N, L) = {shapes[3]} or (B, G, N, L) = '
                f'({batch}, G, {N}, {length}), got {tuple(x.shape)}'
            )
        if x.dim() == 4 and (groups < 1 or channels % groups):
            raise ValueError(
                f'{name}: its {groups} groups (axis 1 of {tuple(x.shape)}) '
                f'must divide D = {channels}'
            )
