# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What all Triton kernels share: whether they run, and their launch.

Triton itself is imported by the modules of the kernels alone.
"""

import functools
import os
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_TRITON = (3, 3)


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
    if not (torch.cuda.is_available() or interpreted()):
        return (
            'PyTorch sees no GPU; install its build for CUDA or ROCm and a '
            'driver, and check CUDA_VISIBLE_DEVICES'
        )
    return None


def interpreted() -> bool:
    """Tell whether Triton runs its kernels in Python."""
    flag = os.environ.get('TRITON_INTERPRET', '')
    return flag.lower() in ('1', 'true', 'on', 'yes', 'y')


@functools.cache
def _serves(index: Optional[int]) -> bool:
    if probe() is not None:
        return False
    # Triton's own requirement; AMD's numbers all pass.
    return torch.cuda.get_device_capability(index) >= (8, 0)


def forget() -> None:
    """Look at the devices again when one is next asked for."""
    _serves.cache_clear()


def serves(index: Optional[int]) -> bool:
    """Tell whether Triton can be used on a CUDA device.

    Args:
        index: number of the device; None is the current one.
    """
    return _serves(index)


# torch.compile then asks once, instead of tracing how it is found out.
serves._dynamo_marked_constant = True


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: what ``triton.jit`` made.
        grid: number of programs along each axis.
        arguments: all its arguments, by name.
        num_warps: warps per program.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int

    def run(self, like: Tensor) -> None:
        """Launch it on the device of ``like``."""
        with torch.cuda.device_of(like):
            self.kernel[self.grid](**self.arguments, num_warps=self.num_warps)


def power_of_2(x: int) -> int:
    """Round up to a power of 2."""
    return 1 << max(0, x - 1).bit_length()
