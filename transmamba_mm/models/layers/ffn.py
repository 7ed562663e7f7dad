# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The FFN of a Transformer block, for the students that have one."""

from typing import Optional

import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN as _FFN
from torch import Tensor, nn

from transmamba_mm.checks import check_width
from transmamba_mm.ops import with_fast_linears


class FFN(_FFN):
    """mmcv's ``FFN`` with GELU, on the faster CPU matrix product.

    Args:
        embed_dims (int): Token width.
        ratio (float): Hidden width over ``embed_dims``.
        drop_path_rate (float): Stochastic depth rate. Defaults to 0.
        drop_rate (float): Dropout after both layers. Defaults to 0.

    Raises:
        ValueError: If ``ratio`` leaves no channel.
    """

    def __init__(
        self,
        embed_dims: int,
        ratio: float,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            embed_dims,
            check_width('ffn_ratio', ratio, embed_dims, ', or 0 for no FFN'),
            act_cfg=dict(type='GELU'),
            ffn_drop=drop_rate,
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
        )

    def forward(self, x: Tensor, identity: Optional[Tensor] = None) -> Tensor:
        """Maps tokens (B, L, C), and adds ``identity``, or else ``x``."""
        return with_fast_linears(super().forward, x, identity)


class GatedFFN(nn.Module):
    """SwiGLU, the FFN of LLaMA (arXiv 2002.05202).

    Args:
        embed_dims (int): Token width.
        hidden_dims (int): Hidden width.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.gate = nn.Linear(embed_dims, hidden_dims, bias=False)
        self.up = nn.Linear(embed_dims, hidden_dims, bias=False)
        self.down = nn.Linear(hidden_dims, embed_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (..., C)."""
        hidden = F.silu(with_fast_linears(self.gate, x))
        hidden = hidden * with_fast_linears(self.up, x)
        return with_fast_linears(self.down, hidden)
