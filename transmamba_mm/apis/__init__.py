# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the command line tools do, as functions."""

from .cka import compare_layers
from .export import export_student
from .flops import get_flops
from .inferencers import with_pipeline
from .model_hub import register_models
from .official import convert_official
from .transfer_plan import plan_transfer
from .video_text_retrieval import VideoTextRetrievalInferencer
from .visual_chat import VisualChatInferencer

__all__ = [
    'VideoTextRetrievalInferencer',
    'VisualChatInferencer',
    'compare_layers',
    'convert_official',
    'export_student',
    'get_flops',
    'plan_transfer',
    'register_models',
    'with_pipeline',
]
