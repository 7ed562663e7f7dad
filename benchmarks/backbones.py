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

import fnmatch
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import backbone_peers
import common
import torch
from block_stack import interleaved_wall
from scan_bars import Bar
from torch import Tensor, nn

from transmamba_mm.models.backbones import MambaBackbone

TINY = 'VisionMamba/tiny'
DEIT_TINY = 'deit_tiny_patch16_224'
PARTS = ('throughput', 'loop', 'resolution', 'profile')
SIZES = (224, 320, 416, 512, 640, 768, 896, 1024)
MODES = ('inference', 'training')


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
    parser.add_argument('--plot', type=Path, help='draw `resolution` here')
    args = parser.parse_args()
    args.batch = args.batch or (1 if args.quick else 8)
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.sizes = args.sizes or (SIZES[:2] if args.quick else SIZES)
    return args


def families(
    base: type[MambaBackbone] = MambaBackbone,
) -> Iterator[type[MambaBackbone]]:
    """Yield every subclass that has presets."""
    for family in base.__subclasses__():
        if family.ARCHS and family.__module__.startswith('transmamba_mm.'):
            yield family
        yield from families(family)


def presets(globs: list[str]) -> dict[str, tuple[type, str]]:
    """Name -> (class, preset) of those whose name matches a pattern."""
    found = {
        f'{family.__name__}/{preset}': (family, preset)
        for family in sorted(set(families()), key=lambda x: x.__name__)
        for preset in family.ARCHS
    }
    return {
        name: value
        for name, value in found.items()
        if any(fnmatch.fnmatchcase(name, glob) for glob in globs)
    }


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Case:
    """A model and its images.

    Args:
        model: the model; returns a tensor or a tuple of tensors.
        batch: number of images.
        side: their height and width.
    """

    def __init__(self, model: nn.Module, batch: int, side: int = 224):
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.images = torch.randn(batch, 3, side, side)
        # A model of videos gets one frame.
        if hasattr(model, 'num_frames'):
            self.images = self.images.unsqueeze(2)

    def inference(self) -> Tensor:
        """Run without gradients."""
        self.model.eval()
        with torch.inference_mode():
            out = self.model(self.images)
        return out[-1] if isinstance(out, tuple) else out

    def training(self) -> None:
        """Run forward and backward."""
        self.model.train()
        out = self.model(self.images)
        out = out[-1] if isinstance(out, tuple) else out
        torch.autograd.grad(
            out, self.parameters, torch.ones_like(out), allow_unused=True
        )


def timed(
    functions: dict[str, Callable], args, slow_seconds: float = 4.0
) -> dict[str, float]:
    """Milliseconds of each, interleaved; see the module."""
    if args.threads > 1:
        return interleaved_wall(functions, args.rounds)
    slow_rounds = min(3, args.rounds)
    return common.interleaved(
        functions, args.rounds, slow_seconds, slow_rounds
    )


def throughput(args) -> list[dict]:
    """Time every selected preset beside DeiT; one row each."""
    rows = []
    for name, (family, preset) in presets(args.select).items():
        model = family(preset)
        peer = backbone_peers.nearest_deit(count_parameters(model))
        models = {'ours': model, 'deit': backbone_peers.deit(peer, 224)}
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
    case = Case(family(arch, img_size=64), 1, 64)
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


def resolution(args) -> dict[str, list[dict]]:
    """Time Vim-tiny and DeiT-tiny over the size of the image."""
    modes = MODES if args.resolution_training else MODES[:1]
    results = {mode: [] for mode in modes}
    (family, preset), *_ = presets([TINY]).values()
    for side in args.sizes:
        models = {
            'ours': family(preset, img_size=side),
            'deit': backbone_peers.deit(DEIT_TINY, side),
        }
        cases = {
            key: Case(value, args.resolution_batch, side)
            for key, value in models.items()
            if value is not None
        }
        for mode in modes:
            functions = {k: getattr(v, mode) for k, v in cases.items()}
            times = timed(functions, args)
            per_image = {
                k: t / args.resolution_batch for k, t in times.items()
            }
            results[mode].append({'side': side, **per_image})
        print(f'{side} pixels: measured', flush=True)
    return results


def crossover(rows: list[dict]) -> Optional[float]:
    """Side from which on DeiT takes longer, interpolated; None if never."""
    ratios = [(row['side'], row['ours'] / row['deit']) for row in rows]
    if ratios[-1][1] >= 1:
        return None
    previous = None
    for side, ratio in reversed(ratios):
        if ratio >= 1:
            share = math.log(ratio) / math.log(ratio / previous[1])
            return side * (previous[0] / side) ** share
        previous = side, ratio
    return float(ratios[0][0])


def print_resolution(results: dict[str, list[dict]]) -> None:
    for mode, rows in results.items():
        compared = 'deit' in rows[0]
        common.print_markdown(
            f'Milliseconds per image, {mode}',
            ['pixels', 'tokens', 'Vim-tiny', 'DeiT-tiny', 'Vim / DeiT'],
            [
                (
                    row['side'],
                    (row['side'] // 16) ** 2 + 1,
                    row['ours'],
                    row.get('deit'),
                    row['ours'] / row['deit'] if compared else None,
                )
                for row in rows
            ],
        )
        if compared:
            side = crossover(rows)
            if side is None:
                print('\nVim-tiny is never the faster one here.')
            elif side == rows[0]['side']:
                print('\nVim-tiny is always the faster one here.')
            else:
                print(f'\nVim-tiny is faster from about {side:.0f} pixels on.')


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """Draw the time per image over the size of the image."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    names = {'ours': ('Vim-tiny', 'C0', 'o'), 'deit': ('DeiT-tiny', 'C1', 's')}
    styles = {'inference': '-', 'training': '--'}
    for mode, rows in results.items():
        sides = [row['side'] for row in rows]
        for key, (label, color, marker) in names.items():
            if key in rows[0]:
                axes.plot(
                    *(sides, [row[key] for row in rows], styles[mode]),
                    color=color,
                    marker=marker,
                    label=f'{label}, {mode}',
                )
        side = crossover(rows) if 'deit' in rows[0] else None
        if side is not None and side > sides[0]:
            axes.axvline(side, color='0.6', linestyle=styles[mode], zorder=0)
            axes.annotate(
                f' {side:.0f} px',
                (side, 0.98 if mode == 'training' else 0.03),
                xycoords=('data', 'axes fraction'),
                verticalalignment='top' if mode == 'training' else 'bottom',
                color='0.3',
            )
    axes.set(xscale='log', yscale='log')
    axes.set_xticks(sides, labels=map(str, sides))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel='image side, pixels', ylabel='CPU time per image, ms')
    axes.set_title(f'{torch.get_num_threads()} thread(s), patches of 16')
    axes.grid(True, which='both', color='0.9')
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def bars(results: dict) -> Iterator[Bar]:
    """Yield the requirements that the results can tell about."""
    for row in results.get('loop', []):
        if row['name'] == TINY:
            times = row['training']
            text = 'Vim-tiny, training: loop (extrapolated) / ours'
            yield Bar(text, 200, times['loop'] / times['ours'])
    for row in results.get('throughput', []):
        if row['name'] == TINY and 'deit' in row['training']:
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
        results['resolution'] = resolution(args)
        print_resolution(results['resolution'])
        if args.plot:
            plot(results['resolution'], args.plot)
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
