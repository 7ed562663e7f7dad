# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Writes a small corpus of real videos with captions, to try retrieval with.

Two coloured shapes move, one after the other; a caption tells colours, shapes,
directions and order. The test holds each clip forwards and backwards, and
colours of shapes that the training does not have. It needs PyAV, the extra
``[video]``.

Example::

    python tools/dataset_converters/make_toy_videos.py data/toy_videos
"""

import argparse
import json

from transmamba_mm.datasets.toy_videos import make_toy_videos
from transmamba_mm.datasets.transforms.video_decoding import check_decoder
from transmamba_mm.utils import cli


def main() -> None:
    """Writes the corpus; prints counts as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out', help='folder to write')
    parser.add_argument('--num-train', type=int, default=2000, metavar='N')
    parser.add_argument('--num-test', type=int, default=200, metavar='N')
    parser.add_argument('--num-frames', type=int, default=12, metavar='N')
    parser.add_argument('--size', type=int, default=32, metavar='PIXELS')
    parser.add_argument('--seed', type=int, default=0)
    try:
        check_decoder('pyav')
        counts = make_toy_videos(**vars(parser.parse_args()))
    except (OSError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    print(json.dumps(counts))


if __name__ == '__main__':
    cli.run_main(main)
