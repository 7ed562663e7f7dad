# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Methods that compete on equal budget, and what may be said of it."""

from .grid import Contestant, Grid, Search, read_grid
from .paper import beside_paper
from .plan import digests_of, jobs_of, plan_jobs
from .report import write_report
from .run import run_grid, run_jobs
from .statistics import Difference, mean_and_deviation, paired_difference

__all__ = [
    'Contestant',
    'Difference',
    'Grid',
    'Search',
    'beside_paper',
    'digests_of',
    'jobs_of',
    'mean_and_deviation',
    'paired_difference',
    'plan_jobs',
    'read_grid',
    'run_grid',
    'run_jobs',
    'write_report',
]
