# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Compare all layers of a student with all layers of its teacher: linear CKA.

Writes the matrix as JSON and draws it; both files are named by ``--out``.

Example::

    python tools/analysis_tools/cka.py CONFIG work_dirs/RUN/epoch_300.pth \
        --num-images 2048 --out work_dirs/RUN/cka
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import mmengine

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis import compare_layers
from transmamba_mm.apis.cka import CKA_SITES, CKA_TOKENS
from transmamba_mm.utils import cli, mistakes


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of a distillation')
    parser.add_argument(
        'checkpoint', help='of such a run, or of its student alone'
    )
    parser.add_argument('--num-images', type=int, default=1024)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument(
        '--site',
        choices=CKA_SITES,
        default=CKA_SITES[0],
        help='what is compared of each layer; defaults to its output',
    )
    parser.add_argument(
        '--tokens',
        choices=CKA_TOKENS,
        default=CKA_TOKENS[0],
        help='the mean patch token of each image, or all as one vector',
    )
    parser.add_argument('--device', help='defaults to the best there is')
    parser.add_argument(
        '--out',
        default='cka',
        metavar='PREFIX',
        help='write PREFIX.json and PREFIX.png; defaults to cka',
    )
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    cfg = cli.load_config(args)
    cli.check_local_file(args.checkpoint, 'checkpoint')
    with mistakes.explained(cfg):
        found = compare_layers(
            cfg,
            args.checkpoint,
            args.num_images,
            args.batch_size,
            args.site,
            args.tokens,
            args.device,
        )
    Path(args.out).resolve().parent.mkdir(parents=True, exist_ok=True)
    mmengine.dump(asdict(found), f'{args.out}.json')
    found.draw().savefig(f'{args.out}.png', dpi=150)
    print(f'{found.num_images} images: {args.out}.json, {args.out}.png')


if __name__ == '__main__':
    cli.run_main(main)
