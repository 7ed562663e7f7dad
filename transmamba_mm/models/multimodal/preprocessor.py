# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From what a data loader gives to the images of each sample."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor

from transmamba_mm.registry import MODELS


@MODELS.register_module()
class ImageSetDataPreprocessor(BaseDataPreprocessor):
    """Normalises images, of which samples have several, one or none.

    Args:
        mean (Sequence[float]): Of the channels as the model reads them.
            Defaults to CLIP's, R, G, B.
        std (Sequence[float]): Likewise.
        to_rgb (bool): Whether images come as BGR, as mmcv loads them.
            Defaults to True.
    """

    def __init__(
        self,
        mean: Sequence[float] = (122.771, 116.746, 104.094),
        std: Sequence[float] = (68.501, 66.632, 70.323),
        to_rgb: bool = True,
    ) -> None:
        super().__init__()
        self.to_rgb = to_rgb
        for name, values in (('mean', mean), ('std', std)):
            values = torch.tensor(values, dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

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
            inputs = [self.mean.new_empty(0, 3, 1, 1)] * len(samples)
        images = []
        for each in inputs:
            each = each.unsqueeze(0) if each.dim() == 3 else each
            each = each.flip(1) if self.to_rgb else each
            images.append((each.to(self.mean.dtype) - self.mean) / self.std)
        return dict(inputs=images, data_samples=samples)
