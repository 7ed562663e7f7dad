# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Distil a small CLIP4Clip into a VideoMamba on toy videos, and compare.

The last line of the output is a JSON object of recalls at 1 in percent, text
to video. ``make quickstart-retrieval`` installs what is needed and runs this.
"""

import argparse
import json
import os

# Several runs share the cores, one thread each. Before torch starts.
os.environ.setdefault('OMP_NUM_THREADS', '1')

from transmamba_mm.apis.quickstart import quickstart_retrieval


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
    parser.add_argument('--clips', type=int, default=2000, help='to train on')
    parser.add_argument('--teacher-epochs', type=int, default=20)
    parser.add_argument('--student-epochs', type=int, default=10)
    print(json.dumps(quickstart_retrieval(**vars(parser.parse_args()))))


if __name__ == '__main__':
    main()
