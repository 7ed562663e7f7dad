# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Export the student of a distillation run as a plain mmpretrain model.

Example::

    python tools/export_student.py work_dirs/RUN/epoch_300.pth
    python tools/test.py work_dirs/RUN/epoch_300_student.py \
        work_dirs/RUN/epoch_300_student.pth
"""

import argparse

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis import export_student
from transmamba_mm.utils import cli


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', help='checkpoint of the distillation')
    parser.add_argument(
        '--out',
        metavar='PREFIX',
        help='write PREFIX.py and PREFIX.pth; by default beside the '
        'checkpoint, with _student appended to its name',
    )
    parser.add_argument(
        '--safetensors',
        action='store_true',
        help='write PREFIX.safetensors instead of PREFIX.pth',
    )
    args = parser.parse_args()
    config, weights = export_student(
        args.checkpoint, args.out, args.safetensors
    )
    print(f'config:  {config}\nweights: {weights}')


if __name__ == '__main__':
    cli.run_main(main)
