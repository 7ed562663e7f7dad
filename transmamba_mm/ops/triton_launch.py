# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the small Triton kernels share: whether they run, and their launch.

Triton itself is imported by the modules of the kernels alone.
"""

import functools
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .backends import triton_scan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _serves(index: Optional[int]) -> bool:
    if triton_scan.probe() is not None:
        return False
    # Triton's own requirement; AMD's numbers all pass.
    return torch.cuda.get_device_capability(index) >= (8, 0)


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
