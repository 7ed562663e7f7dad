# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What a model of lower precision still computes in float32."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """``x`` in float32 at least: float64 stays, half precision does not."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
