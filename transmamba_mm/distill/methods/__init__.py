# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Methods of distillation, one file each.

A file registers one :class:`DistillMethod` in ``TASK_UTILS``, maybe with a
loss of its own in ``MODELS``; nothing else need know it.
"""

from .answer_logits import AnswerLogitsKD, AnswerLogitsLoss
from .base import DistillMethod, Reading
from .bridge import AttentionBridge, BridgeLoss, BridgeMLPs
from .direction import DirectionalMixerLoss, DirectionalMixerMatching
from .exits import AdaptiveTargetLoss, LogitExits, OneForAll
from .hard_label import HardLabel, HardLabelLoss
from .hidden import HiddenStates
from .hint import HintLoss, LastLayerHint
from .logits import (
    LogitsKD,
    StandardisedKLDivergence,
    StandardisedLogitsKD,
)
from .masked_relation import MaskedRelationLoss, MaskedTokenRelations
from .mixer import ForcedMixerLoss, MixerMatching
from .relation import TokenRelationLoss, TokenRelations
from .released import ReleasedLoss, ReleasedTransMamba
from .similarity import SimilarityDistill, SimilarityLoss
from .transmamba import AdaptiveBidirectional, AdaptiveBidirectionalDistill

__all__ = [
    'AdaptiveBidirectional',
    'AdaptiveBidirectionalDistill',
    'AdaptiveTargetLoss',
    'AnswerLogitsKD',
    'AnswerLogitsLoss',
    'AttentionBridge',
    'BridgeLoss',
    'BridgeMLPs',
    'DirectionalMixerLoss',
    'DirectionalMixerMatching',
    'DistillMethod',
    'ForcedMixerLoss',
    'HardLabel',
    'HardLabelLoss',
    'HiddenStates',
    'HintLoss',
    'LastLayerHint',
    'LogitExits',
    'LogitsKD',
    'MaskedRelationLoss',
    'MaskedTokenRelations',
    'MixerMatching',
    'OneForAll',
    'Reading',
    'ReleasedLoss',
    'ReleasedTransMamba',
    'SimilarityDistill',
    'SimilarityLoss',
    'StandardisedKLDivergence',
    'StandardisedLogitsKD',
    'TokenRelationLoss',
    'TokenRelations',
]
