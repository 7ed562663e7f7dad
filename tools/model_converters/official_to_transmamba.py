# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Convert a checkpoint that the authors of a backbone released.

The result has the names of an mmpretrain classifier, has been loaded strictly
into the model of the config, and is used like any other checkpoint.

Example::

    python tools/model_converters/official_to_transmamba.py \
        vim_t_midclstok_76p1acc.pth \
        --config configs/vim/vim-tiny_8xb128-300e_imagenet1k.py \
        --out vim-tiny.pth
    python tools/test.py configs/vim/vim-tiny_8xb128-300e_imagenet1k.py \
        vim-tiny.pth
"""

import argparse

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis import convert_official
from transmamba_mm.models import MambaBackbone
from transmamba_mm.utils import cli


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', help='official file, or its URL')
    parser.add_argument(
        '--config',
        required=True,
        help='config file, or name of a model, that the weights are for',
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='file to write; by default beside the checkpoint, with '
        '_transmamba appended to its name',
    )
    parser.add_argument(
        '--family',
        metavar='NAME',
        help=f'{", ".join(MambaBackbone.families())}: family of the '
        'checkpoint, if nothing in the file says which',
    )
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='take the averaged weights (model_ema) or, with --no-ema, those '
        'of the last step; by default the averaged ones for VMamba, whose '
        'authors report their accuracy, if the file has them',
    )
    parser.add_argument(
        '--drop-head',
        action='store_true',
        help='keep the backbone alone, e.g. to fine-tune for other classes',
    )
    args = parser.parse_args()
    try:
        out = convert_official(**vars(args))
    except (FileNotFoundError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    print(f'weights: {out}')


if __name__ == '__main__':
    cli.run_main(main)
