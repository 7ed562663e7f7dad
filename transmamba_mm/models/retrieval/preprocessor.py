# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From what a data loader gives to a batch of videos."""

from typing import Any

import torch
from mmpretrain.models import VideoDataPreprocessor

from transmamba_mm.registry import MODELS


@MODELS.register_module()
class StackedVideoDataPreprocessor(VideoDataPreprocessor):
    """mmpretrain's, for loaders of any collate function.

    MMEngine's default one gives a list of videos (C, T, H, W), of which this
    makes a batch.

    Args:
        format_shape (str): Defaults to ``'NCTHW'``.
        **kwargs: Further arguments of ``VideoDataPreprocessor``.
    """

    def __init__(self, format_shape: str = 'NCTHW', **kwargs: Any) -> None:
        super().__init__(format_shape=format_shape, **kwargs)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Preprocesses a batch; see ``VideoDataPreprocessor``."""
        data = super().forward(data, training)
        if isinstance(data['inputs'], list):
            data['inputs'] = torch.stack(data['inputs'])
        return data
