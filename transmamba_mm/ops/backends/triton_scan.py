# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'triton'``: kernels for NVIDIA and AMD GPUs.

:mod:`.triton_kernels` has the kernels, this module what surrounds them: which
problems they serve, the sizes of their tiles, their arguments, and the sums
over what several programs contribute to one gradient.

Directions are part of the grid: nothing is gathered or flipped.  The outputs
of K > 1 directions to be merged, and gradients of what directions share, are
written per direction in float32 and summed by PyTorch.  Letting one program
visit all directions would save this traffic, but leave a K-th of the programs,
with K times the steps in a row; atomic sums would depend on the order of
execution.  So results do not change from run to run.

Nothing here was timed on a GPU: :func:`tiling` rests on what the compiler
reports (registers, spills, shuffles).  Steps are taken one after the other,
so that little B * K * D leaves a GPU idle: below about four warps per
multiprocessor, the length should be cut up as well, which is not implemented.
"""

import math
import os
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .problem import ScanProblem

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_TRITON = (3, 3)
MOST_STATES = 256
FURTHEST = 2**31 - 1  # offset that fits in 32 bits


class Tiling(NamedTuple):
    """How the work is cut up; see :func:`tiling`.

    Attributes:
        BN: rows of a tile, the number of states N rounded up.
        BD: columns of a tile, channels per program.
        CH: steps whose states the backward pass holds in registers.
        span: chunks of CH steps per state that is kept in memory.
        num_warps: warps per program.
    """

    BN: int
    BD: int
    CH: int
    span: int
    num_warps: int

    @property
    def period(self) -> int:
        """Steps per state that is kept in memory."""
        return self.CH * self.span


def tiling(N: int, channels: int, scans: int) -> Tiling:
    """Choose the sizes of tiles.  The one place to tune.

    * A thread has at most 16 values of each tile.  The backward pass holds
      those of CH = 4 steps and four more in 255 registers and spills 30 to
      200 bytes (with CH = 8, 900 bytes).  N <= 4 can afford CH = 8.
    * One warp per program as long as that leaves 16 channels, a sector of
      memory in bfloat16: sums then need no exchange between warps.
    * A state is kept in memory every 8 steps, which takes N / 8 times the
      memory of ``u`` in float32.  To get from there to the second half of
      the 8 steps, the first half is computed a third time.
    * N = 1 is bound by memory.  With 64 channels, two per thread, there are
      a quarter fewer instructions per channel, but half the warps; 1024 of
      them must remain.

    Args:
        N: number of states.
        channels: channels per group.
        scans: how many independent scans of one channel there are in all.

    Returns:
        Tiling: the sizes.
    """
    BN = _power_of_2(N)
    BD = 32 if BN <= 16 else 16
    if BN == 1 and scans >= 1024 * 64:
        BD = 64
    BD = min(BD, max(16, _power_of_2(channels)))
    few = BN * BD <= 128
    return Tiling(
        BN, BD, 8 if few else 4, 1 if few else 2, max(1, BN * BD // 512)
    )


def probe() -> Optional[str]:
    """Tell why the backend cannot be used, and what to do; None if it can."""
    try:
        import triton
    except ImportError as e:
        if e.name != 'triton':
            return f'Triton cannot be imported ({e}); install it again'
        return (
            'Triton is not installed; PyTorch for GPUs on Linux brings it '
            'along, else install the package triton'
        )
    version = tuple(int(x) for x in triton.__version__.split('.')[:2])
    if version < OLDEST_TRITON:
        oldest = '.'.join(map(str, OLDEST_TRITON))
        return (
            f'Triton {triton.__version__} is too old; install PyTorch >= 2.7, '
            f'which has Triton {oldest}'
        )
    if not (torch.cuda.is_available() or _interpreted()):
        return (
            'PyTorch sees no GPU; install its build for CUDA or ROCm and a '
            'driver, and check CUDA_VISIBLE_DEVICES'
        )
    return None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether inputs of this device and dtype are served.

    CPU tensors are for tests only: Triton's interpreter takes them, if the
    environment variable ``TRITON_INTERPRET`` is 1.
    """
    device = torch.device(device)
    if dtype not in DTYPES:
        return False
    if device.type == 'cpu':
        return _interpreted()
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
    t = _tiling(p)
    chunks = -(-length // t.period)
    return batch, K, _blocks(p, t), chunks, t.BN, t.BD


def forward(p: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; see :class:`ScanProblem`."""
    last = p.new_last_state()
    states = last.new_empty(states_shape(p) if keep else (0,))
    if p.u.numel() == 0:
        return p.new_out(), last.zero_(), states
    K = len(p.reverse)
    out = _new_tokens(p, torch.float32 if p.merge and K > 1 else p.u.dtype)
    plan_forward(p, out, last, states if keep else None).run()
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
    launch = plan_backward(p, states, grad_out, needs)
    if any(needs):
        launch.run()
    return [
        _fold(name, launch.arguments[f'grad_{name}'], p, x) if need else None
        for name, x, need in zip(p._fields, p.tensors, needs)
    ]


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: its name in :mod:`.triton_kernels`.
        programs: size of the grid.
        arguments: all its arguments, by name.
        num_warps: warps per program.
    """

    kernel: str
    programs: int
    arguments: dict[str, Any]
    num_warps: int

    def run(self) -> None:
        """Launch it on the device of the tensors."""
        from . import triton_kernels

        kernel = getattr(triton_kernels, self.kernel)
        with torch.cuda.device_of(self.arguments['u']):
            kernel[(self.programs,)](
                **self.arguments, num_warps=self.num_warps
            )


def plan_forward(
    p: ScanProblem, out: Tensor, last: Tensor, states: Optional[Tensor]
) -> Launch:
    """Describe the forward launch.

    Args:
        p: the problem.
        out: storage for the outputs of all directions, (B, K, L, D).
        last: storage for the last states.
        states: storage for the states to keep, or None.

    Returns:
        Launch: the launch.
    """
    t = _tiling(p)
    A = p.A.float().transpose(1, 2).contiguous()
    arguments = dict(
        _common_arguments(p, t),
        A=A,
        out=out,
        last=last,
        states=states,
        tile_size=t.BN * t.BD,
        CH=t.period,
    )
    arguments.update(_strides('A', 'kn', A))
    return _launch('scan_forward', p, t, arguments)


def plan_backward(
    p: ScanProblem, states: Tensor, grad_out: Tensor, needs: list[bool]
) -> Launch:
    """Describe the backward launch, and allocate what it writes.

    Args:
        p: the problem.
        states: what the forward launch kept.
        grad_out: gradient of the output.
        needs: which of the eight tensors need gradients.

    Returns:
        Launch: the launch.
    """
    t = _tiling(p)
    batch, K, length, channels, N = p.sizes
    new = states.new_empty
    shapes = {
        'A': states.shape[:3] + states.shape[4:],
        'B': (batch, K, _blocks(p, t), length, N),
        'C': (batch, K, _blocks(p, t), length, N),
        'D': (batch, K, channels),
        'delta_bias': (batch, K, channels),
    }
    arguments = dict(
        _common_arguments(p, t, grad_out),
        states=states,
        grad_out=grad_out,
        CH=t.CH,
        SPAN=t.span,
    )
    for name, x, need in zip(p._fields, p.tensors, needs):
        grad = None
        if need and name in shapes:
            grad = new(shapes[name])
        elif need:
            shared = x.shape[1] < K
            grad = _new_tokens(p, torch.float32 if shared else x.dtype)
        arguments[f'grad_{name}'] = grad
    arguments.update(_strides('grad', 'bkld', grad_out))
    return _launch('scan_backward', p, t, arguments)


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
        blocks=_blocks(p, t),
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
    kernel: str, p: ScanProblem, t: Tiling, arguments: dict[str, Any]
) -> Launch:
    batch, K, length = p.sizes[:3]
    arguments['EVEN_L'] = length % arguments['CH'] == 0
    return Launch(kernel, batch * K * _blocks(p, t), arguments, t.num_warps)


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


def _tiling(p: ScanProblem) -> Tiling:
    batch, K, _, channels, N = p.sizes
    return tiling(N, channels // p.groups, batch * K * channels)


def _blocks(p: ScanProblem, t: Tiling) -> int:
    """Number of programs per sample and direction."""
    return p.groups * -(-p.sizes[3] // (p.groups * t.BD))


def _new_tokens(p: ScanProblem, dtype: torch.dtype) -> Tensor:
    batch, K, length, channels, _ = p.sizes
    return p.u.new_empty((batch, K, length, channels), dtype=dtype)


def _fold(name: str, grad: Tensor, p: ScanProblem, x: Tensor) -> Tensor:
    """Sum what programs have contributed to one gradient."""
    _, K, _, channels, N = p.sizes
    if name in ('u', 'delta', 'z'):
        if x.shape[1] < K:
            grad = grad.sum(1, keepdim=True)
        return grad.to(x.dtype)
    if name in ('B', 'C'):
        grad = grad.unflatten(2, (p.groups, -1))
        axes = [1] if x.shape[1] < K else []
        if grad.shape[3] > 1:
            axes.append(3)
        if axes:
            grad = grad.sum(axes, keepdim=True)
        return grad.squeeze(3).to(x.dtype)
    grad = grad.sum([0, 1] if x.shape[0] < K else 0).reshape(
        x.shape[0], *grad.shape[2:]
    )
    if name == 'A':
        grad = grad[:, :, :N].transpose(2, 3)
        grad = grad.reshape(x.shape[0], p.groups, -1, N)
        grad = grad[:, :, : channels // p.groups].reshape(x.shape)
    return grad.to(x.dtype).contiguous()


def _power_of_2(x: int) -> int:
    """Round up to a power of 2."""
    return 1 << max(0, x - 1).bit_length()


def _interpreted() -> bool:
    """Tell whether Triton runs its kernels in Python."""
    flag = os.environ.get('TRITON_INTERPRET', '')
    return flag.lower() in ('1', 'true', 'on', 'yes', 'y')
