# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Compares training configs over seeds, and reports what is finished.

A cell is one contestant with one seed. Cells run in processes of their own,
with one thread each; what is finished is not run again, and an interrupted
cell goes on from its last checkpoint.

Example::

    python tools/arena.py run configs/arena/digits.py --seeds 3 \
        --work-dir work_dirs/arena_digits --jobs 2
    python tools/arena.py report work_dirs/arena_digits
    python tools/arena.py paper work_dirs/arena_digits
"""

import argparse
from pathlib import Path

from transmamba_mm.arena import (
    beside_paper,
    digests_of,
    jobs_of,
    plan_jobs,
    read_grid,
    run_jobs,
    write_report,
)
from transmamba_mm.utils.cli import UsageError, run_main


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'command',
        choices=['run', 'report', 'paper'],
        help='paper: report, then stand beside what the paper prints',
    )
    parser.add_argument(
        'grid',
        help='config of the grid, or the folder in which it has run: then '
        'all that is there is reported, whatever has become of the configs',
    )
    parser.add_argument(
        '--work-dir', type=Path, help='parent of the cells, with a config'
    )
    parser.add_argument(
        '--seeds', type=int, help="how many of the grid's seeds; all of them"
    )
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='NAME',
        help='contestants to run, with what they need; wildcards are allowed',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        help='cells at a time; without it one per GPU or core, at most 4',
    )
    args = parser.parse_args()
    is_folder = Path(args.grid).is_dir()
    if args.command == 'run' and is_folder:
        parser.error('run takes the config of a grid, not a folder')
    if is_folder == (args.work_dir is not None):
        parser.error('give --work-dir with a config, and only then')
    return args


def main() -> None:
    """Run the tool."""
    args = parse_args()
    failed, digests = [], None
    folder = (args.work_dir or Path(args.grid)).resolve()
    try:
        grid = read_grid(args.grid, args.seeds)
        if args.work_dir:
            jobs = plan_jobs(grid, folder)
            if args.command == 'run':
                chosen = jobs_of(jobs, args.only or ['*'])
                failed = run_jobs(chosen, folder, args.jobs)
            digests = digests_of(jobs)
        board = write_report(grid, folder, digests)
        if args.command == 'paper':
            print(f'\n{beside_paper(grid, board)}')
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error
    if failed:
        raise UsageError(f'no result: {", ".join(failed)}; see above')


if __name__ == '__main__':
    run_main(main)
