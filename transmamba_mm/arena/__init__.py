# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Methods that compete on equal budget, and what may be said of it."""

from .statistics import Difference, mean_and_deviation, paired_difference

__all__ = ['Difference', 'mean_and_deviation', 'paired_difference']
