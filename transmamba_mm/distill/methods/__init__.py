# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Methods of distillation, one file each.

A file registers one :class:`DistillMethod` in ``TASK_UTILS``, maybe with a
loss of its own in ``MODELS``; nothing else need know it.
"""

from .base import DistillMethod, Reading
from .direction import DirectionalMixerLoss, DirectionalMixerMatching
from .hard_label import HardLabel, HardLabelLoss
from .hidden import HiddenStates
from .hint import HintLoss, LastLayerHint
from .logits import LogitsKD
from .mixer import ForcedMixerLoss, MixerMatching
from .relation import TokenRelationLoss, TokenRelations
from .released import ReleasedLoss, ReleasedTransMamba
from .standardised_logits import (
    StandardisedKLDivergence,
    StandardisedLogitsKD,
)
from .transmamba import AdaptiveBidirectional, AdaptiveBidirectionalDistill

__all__ = [
    'AdaptiveBidirectional',
    'AdaptiveBidirectionalDistill',
    'DirectionalMixerLoss',
    'DirectionalMixerMatching',
    'DistillMethod',
    'ForcedMixerLoss',
    'HardLabel',
    'HardLabelLoss',
    'HiddenStates',
    'HintLoss',
    'LastLayerHint',
    'LogitsKD',
    'MixerMatching',
    'Reading',
    'ReleasedLoss',
    'ReleasedTransMamba',
    'StandardisedKLDivergence',
    'StandardisedLogitsKD',
    'TokenRelationLoss',
    'TokenRelations',
]
