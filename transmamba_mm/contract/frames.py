# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Models of images on the frames of videos."""

from typing import Any, Union

from mmengine.model import BaseModule
from torch import Tensor, nn

from transmamba_mm.registry import MODELS

from .records import TokenRecord


@MODELS.register_module()
class PerFrame(BaseModule):
    """Runs a model of images on each frame of a video for itself.

    Args:
        model (dict | nn.Module): The model, e.g.
            ``dict(type='transmamba.CLIPVisionTower', arch='b32')``. It gives
            (B, C), or, as mmpretrain's backbones do, a tuple of which the
            last is taken.
        init_cfg (dict, optional): mmengine initialisation.
    """

    def __init__(
        self, model: Union[dict, nn.Module], init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg)
        is_model = isinstance(model, nn.Module)
        self.model = model if is_model else MODELS.build(model)

    @staticmethod
    def frames_of(videos: Tensor) -> int:
        """Frames in each of the videos (B, C, T, H, W).

        Raises:
            ValueError: If they are none.
        """
        if videos.dim() != 5:
            raise ValueError(
                f'PerFrame takes videos (B, C, T, H, W), got '
                f'{tuple(videos.shape)}'
            )
        return videos.shape[2]

    def forward(self, videos: Tensor) -> Tensor:
        """Features of all frames.

        Args:
            videos (Tensor): (B, C, T, H, W).

        Returns:
            Tensor: (B, T, C').
        """
        frames = self.frames_of(videos)
        features = self.model(videos.transpose(1, 2).flatten(0, 1))
        if isinstance(features, tuple):
            features = features[-1]
        return features.unflatten(0, (-1, frames))


def joined_frames(record: TokenRecord, frames: int) -> TokenRecord:
    """Tokens of single frames as those of videos.

    Args:
        record (TokenRecord): Of B * T frames: tokens (B T, h w, C) on the
            grid (h, w).
        frames (int): Frames T of a video.

    Returns:
        TokenRecord: Tokens (B, T h w, C) on the grid (T, h, w), frame by
        frame. Class tokens (B, n, C) are the means over the frames.
    """
    tokens, classes = (
        x.unflatten(0, (-1, frames)) for x in (record.tokens, record.classes)
    )
    return TokenRecord(
        record.layer,
        tokens.flatten(1, 2),
        (frames, *record.grid),
        classes.mean(1),
    )
