# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Writes a small corpus of drawn shapes and questions about them.

Colours, shapes, how many, where one is from another, whether there is one; in
LLaVA's format, of a training image several turns. Of a second test every
question is about a colour of a shape that no other image has.

Example::

    python tools/dataset_converters/make_toy_vqa.py data/toy_vqa
"""

import argparse
import json

from transmamba_mm.datasets.toy_vqa import make_toy_vqa
from transmamba_mm.utils import cli


def main() -> None:
    """Writes the corpus; prints counts as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out', help='folder to write')
    parser.add_argument('--num-train', type=int, default=6000, metavar='N')
    parser.add_argument('--num-test', type=int, default=500, metavar='N')
    parser.add_argument('--turns', type=int, default=3, metavar='N')
    parser.add_argument('--size', type=int, default=36, metavar='PIXELS')
    parser.add_argument('--seed', type=int, default=0)
    try:
        counts = make_toy_vqa(**vars(parser.parse_args()))
    except (OSError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    print(json.dumps(counts))


if __name__ == '__main__':
    cli.run_main(main)
