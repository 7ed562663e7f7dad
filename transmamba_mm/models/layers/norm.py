# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""RMSNorm as in state-spaces/mamba: weight only, statistics in float32."""

import torch
from mmpretrain.models.utils import LayerNorm2d, build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

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
        self.weight = nn.Parameter(torch.empty(num_features))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws start values."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x`` of shape (..., num_features)."""
        return rms_norm(x, self.weight, self.eps)


# The first is the base of all BatchNorms and InstanceNorms.
_MAP_NORMS = (_NormBase, nn.GroupNorm, LayerNorm2d)


def build_token_norm(norm_cfg: dict, embed_dims: int) -> nn.Module:
    """Builds a norm of tokens (B, L, C).

    Args:
        norm_cfg (dict): Its config.
        embed_dims (int): Token width C.

    Returns:
        nn.Module: The norm.

    Raises:
        ValueError: If it is a norm of maps (B, C, ...).
    """
    norm = build_norm_layer(norm_cfg, embed_dims)
    if isinstance(norm, _MAP_NORMS):
        raise ValueError(
            f'norm_cfg must be a norm of tokens (B, L, C), got {norm_cfg}, '
            f"which is one of maps (B, C, ...): use dict(type='LN') or "
            f"dict(type='transmamba.RMSNorm')"
        )
    return norm
