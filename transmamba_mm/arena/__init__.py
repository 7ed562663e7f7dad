# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Methods that compete on equal budget, and what may be said of it."""

from .grid import Contestant, Grid, read_grid
from .report import write_report
from .run import run_grid
from .statistics import Difference, mean_and_deviation, paired_difference

__all__ = [
    'Contestant',
    'Difference',
    'Grid',
    'mean_and_deviation',
    'paired_difference',
    'read_grid',
    'run_grid',
    'write_report',
]
