# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Metrics that mmpretrain has not."""

from .video_text_retrieval import VideoTextRetrievalMetric, fair_ranks

__all__ = ['VideoTextRetrievalMetric', 'fair_ranks']
