# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Print what weight subcloning would copy, without training.

Every student tensor with its source, rule and note, the channels that a
narrower student keeps, and the coverage in percent of all values.

Example::

    python tools/transfer_plan.py CONFIG --json plan.json
"""

import argparse
from pathlib import Path

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis import plan_transfer
from transmamba_mm.utils import cli, mistakes


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config with a SubcloneInitializer')
    parser.add_argument('--json', metavar='FILE', help='also write JSON')
    parser.add_argument(
        '--shapes-only',
        action='store_true',
        help='plan with a teacher without weights when its checkpoint is not '
        'at hand; the choice of channels is then not meaningful',
    )
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    cfg = cli.load_config(args)
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise cli.UsageError(f"there is no folder for --json '{args.json}'")
    with mistakes.explained(cfg):
        plan = plan_transfer(cfg, args.shapes_only)
    print(plan.table())
    if args.json:
        plan.dump(args.json)


if __name__ == '__main__':
    cli.run_main(main)
