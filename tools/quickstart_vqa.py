# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Distil a small LLaVA into Mambas on toy questions, and compare.

The last line of the output is a JSON object of the shares of right answers in
percent. ``make quickstart-vqa`` installs what is needed and runs this.
"""

import argparse
import json
import os

# Several runs share the cores, one thread each. Before torch starts.
os.environ.setdefault('OMP_NUM_THREADS', '1')

from transmamba_mm.apis.quickstart import quickstart_vqa


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--out-dir',
        help='where logs and figures go; what is finished there is kept',
    )
    parser.add_argument(
        '--seeds', type=int, default=3, help='runs of each student'
    )
    parser.add_argument(
        '--workers',
        type=int,
        help='concurrent runs, by default one per core, at most 4',
    )
    parser.add_argument('--images', type=int, default=6000, help='to train on')
    parser.add_argument('--teacher-epochs', type=int, default=12)
    parser.add_argument('--student-epochs', type=int, default=5)
    print(json.dumps(quickstart_vqa(**vars(parser.parse_args()))))


if __name__ == '__main__':
    main()
