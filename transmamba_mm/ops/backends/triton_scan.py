# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'triton'``: kernels for NVIDIA and AMD GPUs.

:mod:`.triton_forward` and :mod:`.triton_backward` have the kernels, this
module what surrounds them: which problems they serve, the sizes of their
tiles, their arguments, and the sums over what several programs contribute to
one gradient.

Directions are part of the grid: nothing is gathered or flipped.  The outputs
of K > 1 directions to be merged, and gradients of what directions share, are
written per direction in float32 and summed by PyTorch.  Letting one program
visit all directions would save this traffic, but leave a K-th of the programs,
with K times the steps in a row; atomic sums would depend on the order of
execution.  So results do not change from run to run.

Steps are taken one after the other, so that little B * K * D would leave a
GPU idle.  Then the length is cut into segments (:func:`segments`): a first
launch computes where each leads from zero, and every program of the second
starts from what the segments before its own say.  This takes half the work
once more and divides the time that is spent waiting for memory.
"""

import functools
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .problem import ScanProblem

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_TRITON = (3, 3)
MOST_STATES = 256
SHORTEST, MOST_SEGMENTS = 32, 64  # see segments()
FURTHEST = 2**31 - 1  # offset that fits in 32 bits


class Tiling(NamedTuple):
    """How the work is cut up; see :func:`tiling`.

    Attributes:
        BN: rows of a tile, the number of states N rounded up.
        BD: columns of a tile, channels per program.
        CH: steps whose states the backward pass holds in registers.
        span: chunks of CH steps per state that is kept in memory.
        num_warps: warps per program.
        resident: (forward, backward), the warps per multiprocessor for which
            the length is cut up if there are fewer.
        registers: most registers of a thread in the backward pass, so that
            more warps are resident; 0 leaves it to the compiler.
        ahead: steps whose inputs the forward pass holds in registers before
            they are needed; divides :attr:`period`.
        reads_back: whether the backward pass does likewise, for CH steps.
    """

    BN: int
    BD: int
    CH: int
    span: int
    num_warps: int
    resident: tuple[int, int] = (16, 8)
    registers: int = 0
    ahead: int = 2
    reads_back: bool = False

    @property
    def period(self) -> int:
        """Steps per state that is kept in memory."""
        return self.CH * self.span


def tiling(
    N: int,
    channels: int,
    scans: int,
    bytes: int = 4,
    capability: Optional[str] = None,
) -> Tiling:
    """Choose the sizes of tiles.

    Those of ``triton_tilings.json`` where it has the card and the kind of
    scan (``benchmarks/gpu.py`` measures them), else by these rules:

    * A thread has at most 16 values of each tile.  The backward pass holds
      those of CH = 4 steps and four more in 255 registers.  N <= 4 can afford
      CH = 8.
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
        bytes: of an element of ``u``.  Default 4.
        capability: of the card, as '9.0'.  Default None: not known.

    Returns:
        Tiling: the sizes.
    """
    BN = _power_of_2(N)
    widest = max(16, _power_of_2(channels))
    for row in measured_tilings():
        kind = row['capability'], row['BN'], row['bytes']
        if kind == (capability, BN, bytes) and (
            row['most_scans'] is None or scans <= row['most_scans']
        ):
            t = Tiling(BN, *row['tile'], tuple(row['resident']), *row['more'])
            BD = min(t.BD, widest)
            return t._replace(
                BD=BD, num_warps=max(1, t.num_warps * BD // t.BD)
            )
    BD = 32 if BN <= 16 else 16
    if BN == 1 and scans >= 1024 * 64:
        BD = 64
    BD = min(BD, widest)
    few = BN * BD <= 128
    return Tiling(
        BN, BD, 8 if few else 4, 1 if few else 2, max(1, BN * BD // 512)
    )


@functools.cache
def measured_tilings() -> list[dict[str, Any]]:
    """Read what ``benchmarks/gpu.py --only tuning`` has found.

    Returns:
        list[dict]: the fields of :class:`Tiling`, ``tile`` being (BD, CH,
        span, num_warps) and ``more`` what follows ``resident``, by the card's
        ``capability``, ``BN``, ``bytes`` and the ``most_scans`` (None: any)
        up to which it is the best; the first that fits counts.
    """
    path = Path(__file__).with_name('triton_tilings.json')
    return json.loads(path.read_text())


def segments(p: ScanProblem, t: Tiling, resident: int) -> int:
    """Choose into how many segments the length is cut.

    Args:
        p: the problem.
        t: its tiling.
        resident: see :class:`Tiling`.

    Returns:
        int: at least 1; no segment but the last is shorter than
        :data:`SHORTEST` steps, and there are at most :data:`MOST_SEGMENTS`.
    """
    batch, K, length, _, _ = p.sizes
    warps = batch * K * _blocks(p, t) * t.num_warps
    wanted = resident * _multiprocessors(p.u.device) // max(1, warps)
    most = max(1, min(wanted, length // SHORTEST, MOST_SEGMENTS))
    chunks = -(-length // t.period)
    return -(-chunks // -(-chunks // most))


@functools.cache
def _capability(device: torch.device) -> Optional[str]:
    """Compute capability of an NVIDIA card, else None."""
    if device.type != 'cuda' or torch.version.hip:
        return None
    return '{}.{}'.format(*torch.cuda.get_device_capability(device))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """How many a GPU has; 1 for the interpreter."""
    if device.type != 'cuda':
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


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
    for launch in plan_forward(p, out, last, states if keep else None):
        launch.run()
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
        launch.run()
    grads = launches[-1].arguments
    return [
        _fold(name, grads[f'grad_{name}'], p, x) if need else None
        for name, x, need in zip(p._fields, p.tensors, needs)
    ]


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: its name.
        grid: programs, along the first axis samples, directions and blocks
            of channels, along the second segments.
        arguments: all its arguments, by name.
        options: of the compiler.
    """

    kernel: str
    grid: tuple[int, int]
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def function(self):
        """The kernel itself."""
        from . import triton_backward, triton_forward

        is_forward = self.kernel == 'scan_forward'
        module = triton_forward if is_forward else triton_backward
        return getattr(module, self.kernel)

    def run(self) -> None:
        """Launch it on the device of the tensors."""
        with torch.cuda.device_of(self.arguments['delta']):
            self.function[self.grid](**self.arguments, **self.options)


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
    t = _tiling(p)
    S = segments(p, t, t.resident[0])
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
    launches = [_launch('scan_forward', p, t, S, arguments)]
    if S > 1:
        first = dict(arguments, ENDS=True, states=None, out=None)
        launches.insert(0, _launch('scan_forward', p, t, S - 1, first))
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
    t = _tiling(p)
    S = segments(p, t, t.resident[1])
    batch, K, length, channels, N = p.sizes
    new = states.new_empty
    blocks = _blocks(p, t)
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
    arguments = dict(common, CH=t.CH, SPAN=t.span, AHEAD=t.reads_back)
    del arguments['tile_size'], arguments['KEEP']
    for name, x, need in zip(p._fields, p.tensors, needs):
        grad = None
        if need and name in shapes:
            grad = new(shapes[name])
        elif need:
            shared = x.shape[1] < K
            grad = _new_tokens(p, torch.float32 if shared else x.dtype)
        arguments[f'grad_{name}'] = grad
    launches = [_launch('scan_backward', p, t, S, arguments)]
    if S > 1:
        unused = ('u', 'B', 'D')
        adjoint = {
            name: value
            for name, value in common.items()
            if name not in unused
            and name.rpartition('_s')[0] not in unused
            and name != 'ALIGN_B'
        }
        launches.insert(0, _launch('scan_adjoint', p, t, S - 1, adjoint))
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
        shape = batch, K, _blocks(p, t), -(-chunks // periods), t.BN, t.BD
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
    kernel: str, p: ScanProblem, t: Tiling, S: int, arguments: dict[str, Any]
) -> Launch:
    batch, K, length = p.sizes[:3]
    arguments['EVEN_L'] = length % arguments['CH'] == 0
    grid = batch * K * _blocks(p, t), S
    options = dict(num_warps=t.num_warps)
    if kernel == 'scan_backward' and t.registers and not torch.version.hip:
        options['maxnreg'] = t.registers
    return Launch(kernel, grid, arguments, options)


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
    return tiling(
        N,
        channels // p.groups,
        batch * K * channels,
        p.u.element_size(),
        _capability(p.u.device),
    )


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


def _power_of_2(x: int) -> int:
    """Round up to a power of 2."""
    return 1 << max(0, x - 1).bit_length()


def _interpreted() -> bool:
    """Tell whether Triton runs its kernels in Python."""
    flag = os.environ.get('TRITON_INTERPRET', '')
    return flag.lower() in ('1', 'true', 'on', 'yes', 'y')
