# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the command line tools do, as functions."""

from .export import export_student
from .model_hub import register_models
from .transfer_plan import plan_transfer

__all__ = ['export_student', 'plan_transfer', 'register_models']
