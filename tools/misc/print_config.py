# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Print a config as it is after its bases and the options are merged."""

import argparse

import transmamba_mm  # noqa: F401  (makes mmrazor importable)
from transmamba_mm.utils import cli


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Print."""
    print(cli.load_config(parse_args()).pretty_text)


if __name__ == '__main__':
    cli.run_main(main)
