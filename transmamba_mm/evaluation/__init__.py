# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Metrics that mmpretrain has not, or has otherwise."""

from .answers import AnswersFile, ChoiceAccuracy, ExactMatch, VQAAccuracy
from .video_text_retrieval import VideoTextRetrievalMetric, fair_ranks
from .yes_no import MMEScore, POPEScore

__all__ = [
    'AnswersFile',
    'ChoiceAccuracy',
    'ExactMatch',
    'MMEScore',
    'POPEScore',
    'VQAAccuracy',
    'VideoTextRetrievalMetric',
    'fair_ranks',
]
