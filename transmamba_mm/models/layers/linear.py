# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""``nn.Linear`` on :func:`transmamba_mm.ops.linear`."""

from torch import Tensor, nn

from transmamba_mm.ops import linear


class Linear(nn.Linear):
    """``nn.Linear``, with the faster CPU matrix product.

    mmengine's initialisers find it under its base class's name as well.
    """

    @classmethod
    def sharing(cls, other: nn.Linear) -> 'Linear':
        """Makes one with the parameters of ``other``."""
        made = cls(
            other.in_features,
            other.out_features,
            other.bias is not None,
            device='meta',
        )
        made.weight, made.bias = other.weight, other.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)
