# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'triton'``: kernels for NVIDIA and AMD GPUs.

:mod:`.triton_forward`, :mod:`.triton_adjoint` and :mod:`.triton_backward`
have the kernels, :mod:`.triton_tiling` the sizes of their tiles, this module
what surrounds them: which problems they serve, their arguments, and the sums
over what several programs contribute to one gradient.

Directions are part of the grid: nothing is gathered or flipped.  The outputs
of K > 1 directions to be merged, and gradients of what directions share, are
written per direction in float32 and summed by PyTorch.  Letting one program
visit all directions would save this traffic, but leave a K-th of the programs,
with K times the steps in a row; atomic sums would depend on the order of
execution.  So results do not change from run to run.

Steps are taken one after the other, so that little B * K * D would leave a
GPU idle.  Then the length is cut into segments: a first launch computes where
each leads from zero, and every program of the second starts from what the
segments before its own say.  This takes half the work once more and divides
the time that is spent waiting for memory.
"""

import math
from typing import Any, Optional

import torch
from torch import Tensor

from .. import triton_launch
from ..triton_launch import DTYPES, Launch, interpreted
from . import triton_tiling
from .problem import COEFFICIENTS, TENSORS, TOKENS, ScanProblem
from .triton_tiling import Tiling

MOST_STATES = 256
FURTHEST = 2**31 - 1  # offset that fits in 32 bits


def probe() -> Optional[str]:
    """Tell why the backend cannot be used, and what to do; None if it can."""
    return triton_launch.probe()


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether inputs of this device and dtype are served.

    CPU tensors are for tests only: Triton's interpreter takes them, if the
    environment variable ``TRITON_INTERPRET`` is 1.
    """
    device = torch.device(device)
    if dtype not in DTYPES:
        return False
    if device.type == 'cpu':
        return interpreted()
    if device.type != 'cuda' or not torch.cuda.is_available():
        return False
    # Triton's own requirement; AMD's numbers all pass.
    return torch.cuda.get_device_capability(device) >= (8, 0)


def refuses(p: ScanProblem) -> Optional[str]:
    """Tell why this problem is not served; None if it is."""
    K, N = len(p.reverse), p.A.shape[2]
    if p.B.dim() == 2 or p.C.dim() == 2:
        return 'B and C that are constant in time are not implemented'
    if N > MOST_STATES:
        return f'it has {N} states per channel, more than {MOST_STATES}'
    if K > 31:
        return f'it has {K} directions, more than 31'
    return None


def states_shape(p: ScanProblem) -> tuple[int, ...]:
    """Shape of the kept states: (B, K, blocks, chunks, BN, BD)."""
    batch, K, length, _, _ = p.sizes
    t = triton_tiling.of_problem(p)
    chunks = -(-length // t.period)
    return batch, K, triton_tiling.blocks(p, t), chunks, t.BN, t.BD


def forward(p: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; see :class:`ScanProblem`."""
    last = p.new_last_state()
    states = last.new_empty(states_shape(p) if keep else (0,))
    if p.u.numel() == 0:
        return p.new_out(), last.zero_(), states
    K = len(p.reverse)
    out = _new_tokens(p, torch.float32 if p.merge and K > 1 else p.u.dtype)
    for launch in plan_forward(p, out, last, states if keep else None):
        launch.run(p.u)
    if p.merge and K > 1:
        out = out.sum(1, keepdim=True).to(p.u.dtype)
    return out, last, states


def backward(
    p: ScanProblem, states: Tensor, grad_out: Tensor, needs: tuple[bool, ...]
) -> list[Optional[Tensor]]:
    """Compute the gradients; see :class:`ScanProblem`."""
    needs = [x is not None and n for x, n in zip(p.tensors, needs)]
    if p.u.numel() == 0:
        return [
            torch.zeros_like(x, memory_format=torch.contiguous_format)
            if need
            else None
            for x, need in zip(p.tensors, needs)
        ]
    if not any(needs):
        return [None] * len(needs)
    launches = plan_backward(p, states, grad_out, needs)
    for launch in launches:
        launch.run(p.u)
    grads = launches[-1].arguments
    return [
        _fold(name, grads[f'grad_{name}'], p, x) if need else None
        for name, x, need in zip(TENSORS, p.tensors, needs)
    ]


def plan_forward(
    p: ScanProblem, out: Tensor, last: Tensor, states: Optional[Tensor]
) -> list[Launch]:
    """Describe the launches of the forward pass, one or two.

    Args:
        p: the problem.
        out: storage for the outputs of all directions, (B, K, L, D).
        last: storage for the last states.
        states: storage for the states to keep, or None.

    Returns:
        list[Launch]: the launches, in order.
    """
    from .triton_forward import scan_forward

    t = triton_tiling.of_problem(p)
    S = triton_tiling.segments(p, t, t.resident[0])
    A = p.A.float().transpose(1, 2).contiguous()
    arguments = dict(
        _common_arguments(p, t),
        **_crossings(p, t, S, last),
        A=A,
        out=out,
        last=last,
        states=states,
        ENDS=False,
    )
    arguments.update(_strides('A', 'kn', A))
    launches = [_launch(scan_forward, p, t, S, arguments)]
    if S > 1:
        first = dict(arguments, ENDS=True, states=None, out=None)
        launches.insert(0, _launch(scan_forward, p, t, S - 1, first))
    return launches


def plan_backward(
    p: ScanProblem, states: Tensor, grad_out: Tensor, needs: list[bool]
) -> list[Launch]:
    """Describe the launches of the backward pass, and what they write.

    Args:
        p: the problem.
        states: what the forward launch kept.
        grad_out: gradient of the output.
        needs: which of the eight tensors need gradients.

    Returns:
        list[Launch]: the launches, in order; the last one has the gradients
        among its arguments.
    """
    from .triton_adjoint import scan_adjoint
    from .triton_backward import scan_backward

    t = triton_tiling.of_problem(p)
    S = triton_tiling.segments(p, t, t.resident[1])
    batch, K, length, channels, N = p.sizes
    new = states.new_empty
    blocks = triton_tiling.blocks(p, t)
    shapes = {
        'A': (batch, K, blocks, S, t.BN, t.BD),
        'B': (batch, K, blocks, length, N),
        'C': (batch, K, blocks, length, N),
        'D': (batch, K, S, channels),
        'delta_bias': (batch, K, S, channels),
    }
    common = dict(
        _common_arguments(p, t, grad_out),
        **_crossings(p, t, S, states),
        states=states,
        grad_out=grad_out,
        **_strides('grad', 'bkld', grad_out),
    )
    arguments = dict(common, CH=t.CH, SPAN=t.span)
    del arguments['tile_size'], arguments['KEEP']
    for name, x, need in zip(TENSORS, p.tensors, needs):
        grad = None
        if need and name in shapes:
            grad = new(shapes[name])
        elif need:
            shared = x.shape[1] < K
            grad = _new_tokens(p, torch.float32 if shared else x.dtype)
        arguments[f'grad_{name}'] = grad
    launches = [_launch(scan_backward, p, t, S, arguments)]
    if S > 1:
        unused = ('u', 'B', 'D')
        adjoint = {
            name: value
            for name, value in common.items()
            if name not in unused
            and name.rpartition('_s')[0] not in unused
            and name != 'ALIGN_B'
        }
        launches.insert(0, _launch(scan_adjoint, p, t, S - 1, adjoint))
    return launches


def _crossings(
    p: ScanProblem, t: Tiling, S: int, like: Tensor
) -> dict[str, Any]:
    """Arguments about segments, with storage for what passes between them."""
    batch, K, length, _, _ = p.sizes
    chunks = -(-length // t.period)
    periods = -(-chunks // S)
    arguments = dict(
        CH=t.ahead,
        KEEP=t.period // t.ahead,
        tile_size=t.BN * t.BD,
        periods=periods,
        ends=None,
    )
    if S > 1:
        shape = (
            batch,
            K,
            triton_tiling.blocks(p, t),
            -(-chunks // periods),
            t.BN,
            t.BD,
        )
        arguments['ends'] = like.new_empty(shape)
        arguments['spans'] = like.new_empty(shape[:4] + shape[5:])
    return dict(spans=None) | arguments


def _common_arguments(
    p: ScanProblem, t: Tiling, *others: Tensor
) -> dict[str, Any]:
    """Arguments of both kernels."""
    _, K, length, channels, N = p.sizes
    G = p.groups
    arguments = dict(
        orders=p.orders,
        length=length,
        channels=channels // G,
        blocks=triton_tiling.blocks(p, t),
        K=K,
        G=G,
        reverses=sum(1 << k for k, x in enumerate(p.reverse) if x),
        N=N,
        BN=t.BN,
        BD=t.BD,
        SOFTPLUS=p.delta_softplus,
        BY_STEP=p.by_step,
        EVEN_D=channels // G % t.BD == 0,
        ALIGN_B=_alignment(p.B),
        ALIGN_C=_alignment(p.C),
    )
    for name, axes in (
        ('u', 'bkld'),
        ('delta', 'bkld'),
        ('z', 'bkld'),
        ('B', 'bkgln'),
        ('C', 'bkgln'),
        ('D', 'k'),
        ('delta_bias', 'k'),
    ):
        x = getattr(p, name)
        if x is not None and len(axes) == 1:
            x = x.contiguous()
        arguments[name] = x
        arguments.update(_strides(name, axes, x))
    reach = [length * max(channels, N)]
    for x in (p.u, p.delta, p.B, p.C, p.z, *others):
        if x is not None:
            reach += [length * x.stride(-2), N * x.stride(-1)]
    arguments['WIDE'] = max(reach) > FURTHEST
    return arguments


def _launch(
    kernel: Any, p: ScanProblem, t: Tiling, S: int, arguments: dict[str, Any]
) -> Launch:
    batch, K, length = p.sizes[:3]
    arguments['EVEN_L'] = length % arguments['CH'] == 0
    grid = batch * K * triton_tiling.blocks(p, t), S
    return Launch(kernel, grid, arguments, t.num_warps)


def _strides(name: str, axes: str, x: Optional[Tensor]) -> dict[str, int]:
    """Stride arguments; 0 along axes of size 1, whatever PyTorch says."""
    names = [f'{name}_s{axis}' for axis in axes]
    if x is None:
        return dict.fromkeys(names, 0)
    return {
        name: stride if size > 1 else 0
        for name, stride, size in zip(names, x.stride(), x.shape)
    }


def _alignment(x: Tensor) -> int:
    """Bytes that divide the address of each row along the last axis.

    Rows can be read in pieces of this size.  Triton itself only knows
    whether single strides are multiples of 16 elements.
    """
    size = x.element_size()
    if x.stride(-1) != 1:
        return size
    strides = [s * size for s, n in zip(x.stride()[:-1], x.shape) if n > 1]
    return math.gcd(16, x.data_ptr(), *strides)


def _new_tokens(p: ScanProblem, dtype: torch.dtype) -> Tensor:
    batch, K, length, channels, _ = p.sizes
    return p.u.new_empty((batch, K, length, channels), dtype=dtype)


def _fold(name: str, grad: Tensor, p: ScanProblem, x: Tensor) -> Tensor:
    """Sum what programs have contributed to one gradient."""
    _, K, _, channels, N = p.sizes
    if name in TOKENS:
        if x.shape[1] < K:
            grad = grad.sum(1, keepdim=True)
        return grad.to(x.dtype)
    if name in COEFFICIENTS:
        grad = grad.unflatten(2, (p.groups, -1))
        axes = [1] if x.shape[1] < K else []
        if grad.shape[3] > 1:
            axes.append(3)
        if axes:
            grad = grad.sum(axes, keepdim=True)
        return grad.squeeze(3).to(x.dtype)
    # (B, K, segments, D), for A (B, K, blocks, segments, BN, BD)
    axes = [0, 3 if name == 'A' else 2]
    if x.shape[0] < K:
        axes.append(1)
    grad = grad.sum(axes)
    if x.shape[0] < K:
        grad = grad.unsqueeze(0)
    if name == 'A':
        grad = grad[:, :, :N].transpose(2, 3)
        grad = grad.reshape(x.shape[0], p.groups, -1, N)
        grad = grad[:, :, : channels // p.groups].reshape(x.shape)
    return grad.to(x.dtype).contiguous()
