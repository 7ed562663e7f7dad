# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""scikit-learn's handwritten digits, real images that need no download."""

import numpy as np
from mmpretrain.datasets import BaseDataset

from transmamba_mm.registry import DATASETS

_TEST_SIZE = 500


@DATASETS.register_module()
class Digits(BaseDataset):
    """1,797 handwritten digits of 8x8 pixels, shipped with scikit-learn.

    The split is fixed and stratified: 1,297 images to train, 500 to test.
    Samples hold ``img`` (8, 8, 3) uint8 and ``gt_label``, so a pipeline
    starts right with resizing.

    Source: UCI ML hand-written digits, test part, through
    ``sklearn.datasets.load_digits``.

    Args:
        split (str): ``'train'`` or ``'test'``. Defaults to ``'train'``.
        **kwargs: Further arguments of mmpretrain's ``BaseDataset``.

    Raises:
        ValueError: If ``split`` is neither.
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(self, split: str = 'train', **kwargs) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        self.split = split
        super().__init__(ann_file='', test_mode=split == 'test', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Returns one dict per image of the split."""
        # Late: importing scikit-learn takes longer than our whole package.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        train, test = train_test_split(
            np.arange(len(digits.target)),
            test_size=_TEST_SIZE,
            random_state=0,
            stratify=digits.target,
        )
        chosen = train if self.split == 'train' else test
        pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
        return [
            dict(
                img=np.repeat(pixels[i][..., None], 3, axis=2),
                gt_label=int(digits.target[i]),
            )
            for i in chosen
        ]
