# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .digits import Digits
from .fraction import fraction_dataset
from .seeded_augment import SeededAugment
from .skipping import skipping_dataset

__all__ = ['Digits', 'SeededAugment', 'fraction_dataset', 'skipping_dataset']
