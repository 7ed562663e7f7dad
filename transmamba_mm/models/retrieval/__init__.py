# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .heads import MeanPooling, SequenceTransformer
from .preprocessor import StackedVideoDataPreprocessor
from .retriever import VideoTextRetriever
from .transformers_text import TransformersTextEncoder, TransformersTokenizer

__all__ = [
    'MeanPooling',
    'SequenceTransformer',
    'StackedVideoDataPreprocessor',
    'TransformersTextEncoder',
    'TransformersTokenizer',
    'VideoTextRetriever',
]
