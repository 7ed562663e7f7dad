# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Compares training configs over seeds, and reports what is finished.

A cell is one contestant with one seed. Cells run in processes of their own,
with one thread each; what is finished is not run again, and an interrupted
cell goes on from its last checkpoint.

Example::

    python tools/arena.py run configs/arena/tiny_imagenet_pmamba.py \
        --work-dir work_dirs/arena --jobs 2
    python tools/arena.py report configs/arena/tiny_imagenet_pmamba.py \
        --work-dir work_dirs/arena
"""

import argparse
from pathlib import Path

from transmamba_mm.arena import (
    digests_of,
    plan_jobs,
    read_grid,
    run_jobs,
    write_report,
)
from transmamba_mm.utils.cli import UsageError, run_main


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', choices=['run', 'report'])
    parser.add_argument('grid', help='config of the grid')
    parser.add_argument(
        '--work-dir', required=True, type=Path, help='parent of the cells'
    )
    parser.add_argument(
        '--seeds', type=int, help="how many of the grid's seeds; all of them"
    )
    parser.add_argument(
        '--jobs', type=int, help='cells at a time; one per core, at most 4'
    )
    args = parser.parse_args()
    failed = []
    try:
        grid = read_grid(args.grid, args.seeds)
        jobs = plan_jobs(grid, args.work_dir.resolve())
        if args.command == 'run':
            failed = run_jobs(jobs, args.work_dir, args.jobs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    write_report(grid, args.work_dir, digests_of(jobs))
    if failed:
        raise UsageError(f'no result: {", ".join(failed)}; see above')


if __name__ == '__main__':
    run_main(main)
