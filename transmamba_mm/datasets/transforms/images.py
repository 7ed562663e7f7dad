# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Images of a conversation, and the conversation with them."""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmpretrain.structures import DataSample

from transmamba_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PadToSquare(BaseTransform):
    """Pads the shorter side of an image on both ends, as LLaVA-1.5 does.

    Args:
        fill (Sequence[int]): The colour, in the order of the channels of the
            image. Defaults to CLIP's mean in B, G, R, as mmcv loads images.
    """

    def __init__(self, fill: Sequence[int] = (104, 116, 122)) -> None:
        self.fill = tuple(fill)

    def transform(self, results: dict) -> dict:
        """Pads ``img``."""
        image = results['img']
        height, width = image.shape[:2]
        side = max(height, width)
        square = np.empty((side, side, 3), image.dtype)
        square[:] = self.fill
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        results.update(img=square, img_shape=(side, side))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(fill={self.fill})'


@TRANSFORMS.register_module()
class EachImage(BaseTransform):
    """Loads and transforms the images of a sample, each on its own.

    Reads ``img_paths``; adds ``img``, a list of arrays (H, W, 3), empty where
    there are none.

    Args:
        transforms (list): Configs of transforms, ``LoadImageFromFile`` first.
    """

    def __init__(self, transforms: list) -> None:
        self.transforms = Compose(transforms)

    def transform(self, results: dict) -> dict:
        """Loads and transforms the images of a sample."""
        results['img'] = [
            self.transforms(dict(img_path=path))['img']
            for path in results['img_paths']
        ]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transforms})'


@TRANSFORMS.register_module()
class PackConversation(BaseTransform):
    """Packs images and turns for a model.

    ``inputs`` is a uint8 tensor (n, 3, H, W), n being 0 where there are no
    images; the data sample has ``turns``, the last of their answers as
    ``gt_answer`` and, as meta data, ``id`` and ``img_paths``.

    Raises:
        ValueError: If the images of a sample differ in size, naming them.
    """

    def transform(self, results: dict) -> dict:
        """Packs a sample."""
        images = results['img']
        if len({image.shape for image in images}) > 1:
            raise ValueError(
                f'the images {results["img_paths"]} differ in size: pad and '
                f'resize them in transmamba.EachImage'
            )
        inputs = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        if images:
            stacked = np.ascontiguousarray(np.stack(images))
            inputs = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()
        sample = DataSample(
            metainfo={key: results[key] for key in ('id', 'img_paths')},
            turns=results['turns'],
            gt_answer=results['turns'][-1][1],
        )
        return dict(inputs=inputs, data_samples=sample)
