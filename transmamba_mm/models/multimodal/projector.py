# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From features of images to tokens of a language model."""

from typing import Optional

from mmengine.model import BaseModule
from torch import Tensor, nn

from transmamba_mm.checks import check_int
from transmamba_mm.registry import MODELS


@MODELS.register_module()
class MLPProjector(BaseModule):
    """LLaVA-1.5's projector: linear maps with GELUs between them.

    Args:
        in_channels (int): Width of the features.
        out_channels (int): Width of the language model, which
            :class:`TransLlava` fills in.
        depth (int): Linear maps. Defaults to 2.
        init_cfg (dict, optional): mmengine initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int = 2,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = check_int('in_channels', in_channels)
        layers: list[nn.Module] = [nn.Linear(in_channels, out_channels)]
        for _ in range(check_int('depth', depth) - 1):
            layers += [nn.GELU(), nn.Linear(out_channels, out_channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (..., in_channels) to (..., out_channels)."""
        return self.layers(x)
