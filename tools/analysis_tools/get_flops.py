# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Print parameters and FLOPs of a config's model, scans included.

FLOPs are multiply-accumulates of one image or video, as in mmpretrain. Of a
distillation config the student is counted, which is what remains after
training.

Example::

    python tools/analysis_tools/get_flops.py CONFIG --shape 384 384
"""

import argparse

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.modules.conv import _ConvNd

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis import get_flops
from transmamba_mm.models import TransLlava
from transmamba_mm.registry import MODELS
from transmamba_mm.utils import cli


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config, or the student of a distillation."""
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    try:
        model = MODELS.build(cfg.model)
    except (KeyError, TypeError, ValueError) as error:
        message = error.args[0] if error.args else repr(error)
        raise cli.UsageError(f'cannot build the model: {message}') from error
    return getattr(model, 'student', model)


def in_channels(model: nn.Module) -> int:
    """Channels of a model's input: those of its first convolution, or 3."""
    backbone = getattr(model, 'backbone', model)
    convs = (m for m in backbone.modules() if isinstance(m, _ConvNd))
    return next((conv.in_channels for conv in convs), 3)


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config with a model')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        default=[224, 224],
        metavar='SIZE',
        help='height and width, with the number of frames before them for a '
        'video; one number means a square image; defaults to 224 224',
    )
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    if len(args.shape) > 3:
        raise cli.UsageError('--shape takes at most three numbers: T H W')
    if min(args.shape) < 1:
        raise cli.UsageError(
            f'--shape takes numbers from 1 on, got '
            f'{" ".join(map(str, args.shape))}'
        )
    size = args.shape * 2 if len(args.shape) == 1 else args.shape
    model = build_model(cli.load_config(args))
    if isinstance(model, TransLlava):
        raise cli.UsageError(
            'the FLOPs of a TransLlava depend on its text and are not '
            'counted: give the config of a classifier, a backbone or a '
            'retriever'
        )
    shape = (in_channels(model), *size)
    try:
        flops = get_flops(model, shape)
    except ValueError as error:
        raise cli.UsageError(str(error)) from error
    parameters = sum(p.numel() for p in model.parameters())
    print(f'input       {"x".join(map(str, shape))}')
    print(f'parameters  {parameters:,}')
    print(f'FLOPs       {flops:,} ({flops / 1e9:.2f} G)')


if __name__ == '__main__':
    cli.run_main(main)
