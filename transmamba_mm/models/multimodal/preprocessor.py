# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From what a data loader gives to the images of each sample."""

from collections.abc import Sequence
from typing import Optional

import torch
from mmengine.model import ImgDataPreprocessor

from transmamba_mm.registry import MODELS


@MODELS.register_module()
class ImageSetDataPreprocessor(ImgDataPreprocessor):
    """Normalises images, of which samples have several, one or none.

    Args:
        mean (Sequence[float], optional): Of the channels as the model reads
            them. Defaults to None: nothing is normalised. A teacher that
            says nothing of it sees what its student sees.
        std (Sequence[float], optional): Likewise.
        to_rgb (bool): Whether to turn BGR, as mmcv loads images, into RGB.
            Defaults to False.
    """

    def __init__(
        self,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        to_rgb: bool = False,
    ) -> None:
        mean, std = (
            values and [float(x) for x in values] for values in (mean, std)
        )
        super().__init__(mean, std, bgr_to_rgb=to_rgb)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Moves a batch to the device and normalises it.

        Args:
            data (dict): ``inputs`` has of each sample an image (3, H, W) or
                images (n, 3, H, W), uint8, stacked where sizes allow; it
                lacks where no sample has any. ``data_samples`` are passed on.
            training (bool): Makes no difference.

        Returns:
            dict: ``inputs`` is a list with images (n, 3, H, W) of each
            sample.
        """
        data = self.cast_data(data)
        samples = data.get('data_samples')
        inputs = data.get('inputs')
        if inputs is None:
            inputs = [torch.empty(0, 3, 1, 1, device=self.device)]
            inputs = inputs * len(samples)
        images = []
        for each in inputs:
            each = each.unsqueeze(0) if each.dim() == 3 else each
            each = each.flip(1) if self._channel_conversion else each
            if self._enable_normalize:
                each = (each.to(self.mean.dtype) - self.mean) / self.std
            images.append(
                each.to(torch.promote_types(each.dtype, torch.float))
            )
        return dict(inputs=images, data_samples=samples)
