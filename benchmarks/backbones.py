# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Whole backbones beside DeiT, and beside themselves on plain loops.

Run from the repository root, with the package installed or on PYTHONPATH::

    OMP_NUM_THREADS=1 python benchmarks/backbones.py --json backbones.json

All candidates of a comparison run in turn in one process; times are medians
of CPU time on one thread.  Backbones have no classifier and random weights.
DeiT is timm's, of the nearest number of parameters; without timm these
columns stay empty.  ``--only`` selects from:

``throughput``
    images per second of every preset of every registered backbone at 224
    pixels, in training (forward and backward) and inference;
``loop``
    the models of ``--loop`` on ``selective_scan_ref``'s loop over tokens and
    PyTorch's operators, as official code runs on a CPU.  Few blocks are
    measured and extrapolated to the full depth;
``resolution``
    time per image of Vim-tiny and DeiT-tiny from 224 to 1024 pixels, and
    where they cross;
``profile``
    what Vim-tiny and DeiT-tiny spend a training step on, by PyTorch's
    profiler.

The last table compares the figures with what is required.  ``--threads N``
gives wall time with N threads.
"""

import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import backbone_peers
import backbone_profile
import backbone_resolution
import common
import torch
from backbone_cases import (
    MODES,
    TINY,
    Case,
    count_parameters,
    presets,
    timed,
)
from scan_bars import Bar

from transmamba_mm.models.backbones import MambaBackbone

PARTS = ('throughput', 'loop', 'resolution', 'profile')
SIZES = (224, 320, 416, 512, 640, 768, 896, 1024)


def parse_args():
    parser = common.make_parser(__doc__)
    parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS[:3])
    parser.add_argument(
        '--select',
        nargs='+',
        default=['*'],
        metavar='GLOB',
        help='presets of `throughput`, as VisionMamba/tiny* (default: all)',
    )
    parser.add_argument(
        '--loop',
        nargs='+',
        default=[TINY],
        metavar='GLOB',
        help=f'presets of `loop` (default: {TINY})',
    )
    parser.add_argument('--batch', type=int, help='default 8, quick: 1')
    parser.add_argument('--rounds', type=int, help='default 5, quick: 1')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--sizes', nargs='+', type=int, metavar='PIXELS')
    parser.add_argument(
        '--resolution-batch', type=int, default=1, metavar='IMAGES'
    )
    parser.add_argument(
        '--resolution-training',
        action='store_true',
        help='`resolution` in training as well',
    )
    parser.add_argument(
        '--keep-memory',
        action='store_true',
        help='make the C library keep freed memory, which the loop profits '
        'from most',
    )
    parser.add_argument(
        '--our-linear',
        action='store_true',
        help="give DeiT our linear map, which is another than PyTorch's on "
        'some processors',
    )
    parser.add_argument('--plot', type=Path, help='draw `resolution` here')
    args = parser.parse_args()
    args.batch = args.batch or (1 if args.quick else 8)
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.sizes = args.sizes or (SIZES[:2] if args.quick else SIZES)
    return args


def throughput(args) -> list[dict]:
    """Time every selected preset beside DeiT; one row each."""
    rows = []
    for name, (family, preset) in presets(args.select).items():
        model = family(preset)
        peer = backbone_peers.nearest_deit(count_parameters(model))
        models = {
            'ours': model,
            'deit': backbone_peers.deit(peer, 224, args.our_linear),
        }
        row = {'name': name, 'deit': peer, 'batch': args.batch}
        row['millions'] = count_parameters(model) / 1e6
        cases = {
            key: Case(value, args.batch)
            for key, value in models.items()
            if value is not None
        }
        for mode in MODES:
            functions = {k: getattr(v, mode) for k, v in cases.items()}
            row[mode] = timed(functions, args)
        print(f'{name}: measured', flush=True)
        rows.append(row)
    return rows


def print_throughput(rows: list[dict]) -> None:
    def cells(row):
        for mode in reversed(MODES):
            times = row[mode]
            yield 1e3 * row['batch'] / times['ours']
            peer = times.get('deit')
            yield 1e3 * row['batch'] / peer if peer else None
            yield times['ours'] / peer if peer else None

    common.print_markdown(
        'Images per second at 224 pixels, and time over that of DeiT',
        [
            *('backbone', 'M parameters', 'DeiT'),
            *('training', 'DeiT', 'time, ratio'),
            *('inference', 'DeiT', 'time, ratio'),
        ],
        [
            (
                row['name'],
                row['millions'],
                row['deit'].split('_')[1],
                *cells(row),
            )
            for row in rows
        ],
    )


def check_loop(family: type[MambaBackbone], arch: dict) -> None:
    """Compare both ways of computing one block per stage."""
    case = Case(family(arch), 1, 64)
    want = case.inference()
    with backbone_peers.plain_operators():
        error = (case.inference() - want).abs().max() / want.abs().max()
    assert error < 1e-3, f'the loop gives something else: {error}'


def loop(args) -> list[dict]:
    """Time presets on plain loops, extrapolated, beside themselves."""
    rows = []
    for name, (family, preset) in presets(args.loop).items():
        archs = backbone_peers.shallow_archs(family, preset)
        if archs is None:
            print(f'{name} states its depth in an unknown way: left out')
            continue
        check_loop(family, archs[0][0])
        row = {'name': name, 'batch': args.batch}
        row['archs'] = [arch for arch, _ in archs]
        full = Case(family(preset), args.batch)
        few = [Case(family(arch), args.batch) for arch, _ in archs]
        for mode in MODES:

            def on_loops(case, mode=mode):
                with backbone_peers.plain_operators():
                    getattr(case, mode)()

            functions = {'ours': getattr(full, mode)}
            for i, case in enumerate(few):
                functions[f'few {i}'] = getattr(case, mode)
                functions[f'loop {i}'] = functools.partial(on_loops, case)
            times = timed(functions, args, slow_seconds=math.inf)
            for key in ('few', 'loop'):
                times[key] = sum(
                    weight * times[f'{key} {i}']
                    for i, (_, weight) in enumerate(archs)
                )
            row[mode] = times
        rows.append(row)
    return rows


def print_loop(rows: list[dict]) -> None:
    for row in rows:
        shallow = len(row['archs'])
        common.print_markdown(
            f'{row["name"]}, {row["batch"]} images: the loop over tokens, '
            f'measured on {shallow} models of one or two blocks per stage '
            f'and extrapolated to the full depth',
            [
                *('', 'ours, ms', 'ours extrapolated likewise, ms'),
                *('loop extrapolated, ms', 'loop / ours'),
            ],
            [
                (
                    mode,
                    row[mode]['ours'],
                    row[mode]['few'],
                    row[mode]['loop'],
                    row[mode]['loop'] / row[mode]['ours'],
                )
                for mode in MODES
            ],
        )


def bars(results: dict) -> Iterator[Bar]:
    """Yield the requirements that the results can tell about."""
    for row in results.get('loop', []):
        if row['name'] == TINY and row['batch'] == 8:
            times = row['training']
            text = 'Vim-tiny, training: loop (extrapolated) / ours'
            yield Bar(text, 200, times['loop'] / times['ours'])
    for row in results.get('throughput', []):
        if row['name'] != TINY or row['batch'] != 8:
            continue
        if 'deit' in row['training']:
            times = row['training']
            text = 'Vim-tiny, training: ours / DeiT-tiny'
            yield Bar(text, 2.5, times['ours'] / times['deit'], True)
    for row in results.get('resolution', {}).get('inference', []):
        if row['side'] == 1024 and 'deit' in row:
            text = 'Vim-tiny, inference at 1024 pixels: ours / DeiT-tiny'
            yield Bar(text, 1, row['ours'] / row['deit'], True)


def main() -> None:
    """Print the tables."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.keep_memory:
        common.keep_memory()
    print(common.environment())
    if backbone_peers.timm is None:
        print(backbone_peers.NO_TIMM)
    results = {}
    start = time.perf_counter()
    if 'throughput' in args.only:
        results['throughput'] = throughput(args)
        print_throughput(results['throughput'])
    if 'loop' in args.only:
        results['loop'] = loop(args)
        print_loop(results['loop'])
    if 'resolution' in args.only:
        results['resolution'] = backbone_resolution.measure(args)
        backbone_resolution.print_table(results['resolution'])
        if args.plot:
            backbone_resolution.plot(results['resolution'], args.plot)
    if 'profile' in args.only:
        results['profile'] = backbone_profile.measure(args)
        backbone_profile.print_table(results['profile'])
    found = list(bars(results))
    if found:
        common.print_markdown(
            'Bars',
            ['bar', 'required', 'measured', ''],
            [
                (
                    bar.text,
                    f'{bar.sign} {bar.required:g}',
                    float(bar.measured),
                    'PASS' if bar.passed else 'MISS',
                )
                for bar in found
            ],
        )
    results['bars'] = [vars(bar) for bar in found]
    print(f'\n{time.perf_counter() - start:.0f} s in all')
    common.write_json(args.json, results)


if __name__ == '__main__':
    main()
