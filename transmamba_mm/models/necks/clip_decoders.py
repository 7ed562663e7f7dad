# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The decoders that align VideoMamba with CLIP in masked pre-training.

Paper: VideoMamba (arXiv 2403.06977). Official code: OpenGVLab/VideoMamba
(Apache-2.0), ``PretrainVideoMamba``.
"""

import math
from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from transmamba_mm.contract.start_values import FreshStart
from transmamba_mm.ops.caching import cached_tensors
from transmamba_mm.registry import MODELS


@cached_tensors(maxsize=8)
def sinusoids(positions: int, dims: int, device: str) -> tuple[Tensor]:
    """Sines in even channels and cosines in odd ones.

    Args:
        positions (int): Rows.
        dims (int): Channels; the pair ``j`` has the period
            ``2 * pi * 10000 ** (2 * j / dims)``.
        device (str): Where the result lives.

    Returns:
        tuple[Tensor]: (positions, dims), the same tensor at every call.
    """
    channels = torch.arange(dims, dtype=torch.float64, device='cpu')
    speeds = 10000 ** (-2 * (channels // 2) / dims)
    rows = torch.arange(positions, dtype=torch.float64, device='cpu')
    angles = rows[:, None] * speeds
    odd = channels.long() % 2 == 1
    table = torch.where(odd, angles.cos(), angles.sin())
    return (table.float().to(device),)


class _Decoder(BaseModule):
    """A linear layer and a norm."""

    def __init__(self, embed_dims: int, clip_dims: int) -> None:
        super().__init__()
        self.head = nn.Linear(embed_dims, clip_dims)
        self.norm = nn.LayerNorm(clip_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws start values other than the norm's."""
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(x))


@MODELS.register_module()
class ClipDecoders(FreshStart):
    """Maps the features of several layers to CLIP's, a decoder for each.

    Example:
        >>> neck = ClipDecoders(embed_dims=576, num_decoders=2)
        >>> layers = neck.student_layers(backbone.num_layers)
        >>> seen = backbone.encode(video, mask, layers=layers)
        >>> aligned = neck(seen.layers, seen.grid, mask)

    Args:
        embed_dims (int): Width of the backbone.
        clip_dims (int): Width of CLIP's features. Defaults to 512.
        num_decoders (int): Layers to align (``clip_return_layer`` of the
            original). Defaults to 1.
        interval (float): Layers from one to the next, backwards from the
            last (``clip_student_return_interval``). Defaults to 1.
        normalise (bool): Scale the output to unit length, as the original
            does for single-modality pre-training and not for retrieval.
            Defaults to False.
        init_cfg (dict | list[dict], optional): mmengine initialisation.
    """

    def __init__(
        self,
        embed_dims: int,
        clip_dims: int = 512,
        num_decoders: int = 1,
        interval: float = 1,
        normalise: bool = False,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dims = embed_dims
        self.interval = interval
        self.normalise = normalise
        self.clip_decoder = ModuleList(
            _Decoder(embed_dims, clip_dims) for _ in range(num_decoders)
        )

    def student_layers(self, num_layers: int) -> list[int]:
        """The layers to align.

        Args:
            num_layers (int): Layers of the backbone.

        Returns:
            list[int]: Some of them, ascending.

        Raises:
            ValueError: If the backbone is too shallow.
        """
        steps = range(len(self.clip_decoder))
        layers = sorted(num_layers - 1 - int(i * self.interval) for i in steps)
        if len(set(layers)) < len(layers) or (layers and layers[0] < 0):
            raise ValueError(
                f'{len(layers)} decoders every {self.interval} layers do not '
                f'fit a backbone of {num_layers} layers: change num_decoders '
                f'or interval'
            )
        return layers

    def forward(
        self,
        features: Sequence[Tensor],
        grid: Sequence[int],
        mask: Optional[Tensor] = None,
    ) -> Tensor:
        """Decodes features.

        Args:
            features (Sequence[Tensor]): (B, 1 + N, C) of each layer, class
                token first, in depth order.
            grid (Sequence[int]): Patch grid, (h, w) or (t, h, w).
            mask (Tensor, optional): Bool (B, 1 + h*w), True where the
                features have no token. Defaults to None, no such place.

        Returns:
            Tensor: (K, B, 1 + N, clip_dims).

        Raises:
            ValueError: If there are not as many features as decoders.
        """
        if len(features) != len(self.clip_decoder):
            raise ValueError(
                f'{len(self.clip_decoder)} decoders cannot decode features '
                f'of {len(features)} layers: ask the backbone for '
                f'student_layers(num_layers)'
            )
        length = 1 + math.prod(grid)
        outputs = []
        for feature, decoder in zip(features, self.clip_decoder):
            (table,) = sinusoids(length, self.embed_dims, str(feature.device))
            positions = table.to(feature.dtype).expand(len(feature), -1, -1)
            if mask is not None:
                positions = positions[~mask].view_as(feature)
            outputs.append(decoder(feature + positions))
        out = torch.stack(outputs)
        return F.normalize(out, dim=-1) if self.normalise else out
