# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .causal_lm import TransformersCausalLM
from .preprocessor import ImageSetDataPreprocessor
from .projector import MLPProjector
from .prompts import PromptTemplate
from .tokenizers import ByteTokenizer, CausalTokenizer
from .trans_llava import TransLlava

__all__ = [
    'ByteTokenizer',
    'CausalTokenizer',
    'ImageSetDataPreprocessor',
    'MLPProjector',
    'PromptTemplate',
    'TransLlava',
    'TransformersCausalLM',
]
