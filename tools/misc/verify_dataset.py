# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Decode all images and videos of a config once; name the unreadable ones."""

import argparse
from pathlib import Path

import transmamba_mm  # noqa: F401  (makes mmrazor importable)
from transmamba_mm.apis.verify import find_unreadable_samples
from transmamba_mm.utils import cli


def main() -> None:
    """Verify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--policy',
        choices=['error', 'skip'],
        default='error',
        help='error: fail if there are any; skip: list them in --out, for '
        'transmamba.SkippingDataset',
    )
    parser.add_argument('--out', default='unreadable.txt', metavar='FILE')
    parser.add_argument('--workers', type=int, help='processes')
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    bad, total = find_unreadable_samples(cli.load_config(args), args.workers)
    for path, reason in bad.items():
        print(f'{path}: {reason}')
    told = f'{len(bad)} of {total} files cannot be read'
    if bad and args.policy == 'error':
        raise cli.UsageError(f'{told}, see above')
    if args.policy == 'skip':
        Path(args.out).write_text(''.join(f'{path}\n' for path in bad))
        told += f'; listed in {args.out}'
    print(told)


if __name__ == '__main__':
    cli.run_main(main)
