# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Print the memory that a training run needs on each GPU, without running it.

Weights, teacher, gradients, optimizer, what GPUs exchange, and activations,
of a step on tensors without values: no GPU, no data and no weights are
needed, but the ``config.json`` of a language model is.

Example::

    python tools/analysis_tools/plan_memory.py CONFIG --gpus 4 --strategy fsdp
"""

import argparse

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis.memory_plan import STRATEGIES, plan_memory
from transmamba_mm.utils import cli, mistakes


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config to train')
    parser.add_argument('--gpus', type=int, default=1, metavar='N')
    parser.add_argument(
        '--strategy',
        choices=STRATEGIES,
        help="defaults to the config's; that of a config which names none is "
        'ddp',
    )
    parser.add_argument(
        '--batch',
        type=int,
        metavar='N',
        help="samples on each GPU; defaults to the config's",
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='SIZE',
        help='height and width of images, with the number of frames before '
        'them for a video; defaults to what the pipeline makes',
    )
    parser.add_argument(
        '--length',
        type=int,
        metavar='N',
        help='tokens of a conversation, or of the text of a video; defaults '
        'to the most that the config allows',
    )
    parser.add_argument('--json', metavar='FILE', help='also write JSON')
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    cfg = cli.load_config(args)
    with mistakes.explained(cfg):
        plan = plan_memory(
            cfg,
            args.gpus,
            args.strategy,
            args.batch,
            args.shape,
            args.length,
        )
    print(plan.table())
    if args.json:
        plan.dump(args.json)


if __name__ == '__main__':
    cli.run_main(main)
