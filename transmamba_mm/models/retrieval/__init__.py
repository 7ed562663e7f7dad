# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .heads import MeanPooling, SequenceTransformer
from .retriever import VideoTextRetriever

__all__ = ['MeanPooling', 'SequenceTransformer', 'VideoTextRetriever']
