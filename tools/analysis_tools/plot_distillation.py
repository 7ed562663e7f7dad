# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Draw what a distillation logged of its layers, directions and losses.

Similarities and weights of the paper's method, errors of the paired layers of
other methods, and the gradient shares of ``transmamba.GradientShareHook``, one
picture each, in the run's folder.

Example::

    python tools/analysis_tools/plot_distillation.py work_dirs/RUN
"""

import argparse
from pathlib import Path

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.arena.figures import draw_distillation
from transmamba_mm.arena.results import read_scalars
from transmamba_mm.utils import cli


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('work_dir', type=Path, help='folder of the run')
    parser.add_argument(
        '--out-dir', type=Path, help='defaults to the folder of the run'
    )
    args = parser.parse_args()
    figures = draw_distillation(read_scalars(args.work_dir))
    if not figures:
        raise cli.UsageError(
            f"'{args.work_dir}' is no folder of a run whose "
            f'*/vis_data/scalars.json tell of layers: they are written by '
            f'transmamba.DistillMonitor and transmamba.GradientShareHook'
        )
    folder = args.out_dir or args.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f'{name}.png', dpi=150)
        print(folder / f'{name}.png')


if __name__ == '__main__':
    cli.run_main(main)
