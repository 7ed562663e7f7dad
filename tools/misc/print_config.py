# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Print a config as it is after its bases and the options are merged."""

import argparse

from mmengine.config import Config, DictAction

import transmamba_mm  # noqa: F401  (makes mmrazor importable)
from transmamba_mm.utils import cli


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings to override',
    )
    return parser.parse_args(argv)


def main() -> None:
    """Print."""
    args = parse_args()
    cli.check_local_file(args.config, 'config file')
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cli.check_config_keys(cfg)
    print(cfg.pretty_text)


if __name__ == '__main__':
    cli.run_main(main)
