# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""PlainMamba (arXiv 2403.17695, github.com/ChenhongyiYang/PlainMamba)."""

from .base import CheckpointFormat, register

PLAIN_MAMBA = register(CheckpointFormat(family='plainmamba'))
