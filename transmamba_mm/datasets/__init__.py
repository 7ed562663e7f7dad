# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from . import transforms
from .digits import Digits
from .fraction import fraction_dataset
from .gqa import GQADataset
from .llava import LLaVAInstructDataset
from .llava_cot import LLaVACoTDataset
from .mme import MMEDataset
from .partly_labelled import PartlyLabelledDataset
from .pope import POPEDataset
from .science_qa import ScienceQADataset
from .seeded_augment import SeededAugment
from .skipping import skipping_dataset
from .textvqa import TextVQADataset
from .video_text import VideoTextDataset
from .vizwiz import VizWizDataset
from .vqav2 import VQAv2Dataset

__all__ = [
    'Digits',
    'GQADataset',
    'LLaVACoTDataset',
    'LLaVAInstructDataset',
    'MMEDataset',
    'POPEDataset',
    'PartlyLabelledDataset',
    'ScienceQADataset',
    'SeededAugment',
    'TextVQADataset',
    'VQAv2Dataset',
    'VideoTextDataset',
    'VizWizDataset',
    'fraction_dataset',
    'skipping_dataset',
    'transforms',
]
