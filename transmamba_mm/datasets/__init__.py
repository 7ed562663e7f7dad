# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from . import transforms
from .digits import Digits
from .fraction import fraction_dataset
from .llava import LLaVAInstructDataset
from .seeded_augment import SeededAugment
from .skipping import skipping_dataset
from .video_text import VideoTextDataset

__all__ = [
    'Digits',
    'LLaVAInstructDataset',
    'SeededAugment',
    'VideoTextDataset',
    'fraction_dataset',
    'skipping_dataset',
    'transforms',
]
