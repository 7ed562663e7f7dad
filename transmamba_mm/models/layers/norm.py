# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""RMSNorm as in state-spaces/mamba: weight only, statistics in float32."""

import torch
from torch import Tensor, nn

from transmamba_mm.ops import rms_norm
from transmamba_mm.registry import MODELS


@MODELS.register_module()
class RMSNorm(nn.Module):
    """Root mean square normalisation over the last dimension.

    Args:
        num_features (int): Size of the last dimension.
        eps (float): Added to the mean square. Defaults to 1e-5.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x`` of shape (..., num_features)."""
        return rms_norm(x, self.weight, self.eps)
