# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Selective scan: our backends, other implementations, the machine's limit.

Run from the repository root, with the package installed or on PYTHONPATH::

    OMP_NUM_THREADS=1 python benchmarks/scan.py --json scan.json

All candidates of a comparison run in turn in one process; times are medians
of CPU time on one thread.  Peers: ``ref``, a loop over steps as mamba-ssm's
``selective_scan_ref`` is; mambapy's parallel scan and transformers' loop, if
these packages can be imported.  The loops' backward passes are O(L^2): they
run at two shapes only.  What the machine could do at best is measured in the
same rounds (``machine_limit.py``).

``--only`` selects from: scan, ordered, conv, norm, permute, lengths, memory.
``--threads 1 2 4`` instead measures wall time with these numbers of threads,
for an otherwise idle machine.
"""

import functools
import statistics
import time
from pathlib import Path
from typing import Optional

import common
import machine_limit
import peers
import scan_memory
import scan_parts
import torch
from scan_bars import print_bars

# (B, D, L, N): Vim and PlainMamba, tiny and small; training on small images;
# long sequences; VMamba's first stage.
SHAPES = [
    (8, 384, 197, 16),
    (8, 768, 197, 16),
    (32, 192, 64, 16),
    (2, 384, 1024, 16),
    (2, 384, 3136, 1),
    (1, 192, 16384, 16),
]
QUICK_SHAPES = [(2, 64, 50, 16), (2, 64, 196, 1)]
LOOPS = ('ref', 'transformers')
LOOPS_BACKWARD = [*QUICK_SHAPES, (8, 384, 197, 16), (32, 192, 64, 16)]
PARTS = ('scan', 'ordered', 'conv', 'norm', 'permute', 'lengths', 'memory')


def parse_args():
    parser = common.make_parser(__doc__)
    parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
    parser.add_argument(
        '--layout',
        choices=('bld', 'bdl'),
        default='bld',
        help='storage of the inputs: channels-last (default) or time-last',
    )
    parser.add_argument(
        '--peer-layout',
        choices=('bld', 'bdl'),
        default='bdl',
        help='the same for the peers: bdl (default) is what their own '
        'convolutions and projections hand them',
    )
    parser.add_argument('--rounds', type=int, help='default 15, quick: 3')
    parser.add_argument('--plot', type=Path, help='draw the figures here')
    parser.add_argument(
        '--threads',
        nargs='+',
        type=int,
        help='measure only wall time with these numbers of threads',
    )
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 15)
    return args


def check(scans: dict, inputs: dict[str, list], shape: tuple) -> None:
    """Compare the outputs of all candidates with the loop's."""
    want = peers.forward(peers.ref, inputs['ref'])
    for name, scan in scans.items():
        out = peers.forward(scan, inputs[name])
        error = (out - want).abs().max() / want.abs().max()
        assert error < 1e-5, f'{name} is wrong at {shape}: {error}'


def measure(
    scans: dict,
    shape: tuple[int, int, int, int],
    limit: Optional[machine_limit.MachineLimit],
    args,
) -> dict:
    """Time all candidates and the limits at one shape."""
    layouts = {
        name: args.layout if name in peers.OURS else args.peer_layout
        for name in scans
    }
    stored = {}
    for layout in ('bld', 'bdl'):
        inputs = peers.scan_inputs(shape, layout)
        stored[layout] = inputs, torch.randn_like(inputs[0])
    inputs = {name: stored[layout][0] for name, layout in layouts.items()}
    dout = {name: stored[layout][1] for name, layout in layouts.items()}
    check(scans, inputs, shape)
    row = {'shape': shape, 'layouts': layouts}
    for mode in ('forward', 'forward+backward'):
        backward = mode != 'forward'
        candidates = {}
        for name, scan in scans.items():
            if not backward:
                candidates[name] = functools.partial(
                    peers.forward, scan, inputs[name]
                )
            elif name not in LOOPS or shape in LOOPS_BACKWARD:
                candidates[name] = functools.partial(
                    peers.forward_backward, scan, inputs[name], dout[name]
                )
        if limit is not None:
            candidates.update(limit.probes())
        times = common.interleaved(candidates, args.rounds, once_seconds=4)
        row[mode] = times
        if limit is not None:
            rates = limit.rates(times)
            row[f'{mode} rates'] = rates
            row[f'{mode} limits'] = {
                exp: machine_limit.limit_ms(rates, shape, backward, exp)
                for exp in ('exp', 'exp by table')
            }
    return row


def print_row(row: dict) -> None:
    """Print the times at one shape, ratios to the first candidate."""
    forward, both = row['forward'], row['forward+backward']
    base = next(iter(forward))
    lines = [
        (
            f'{name} ({row["layouts"][name]})',
            forward[name],
            forward[name] / forward[base],
            both.get(name),
            both[name] / both[base] if name in both else None,
        )
        for name in forward
    ]
    for exp in row.get('forward limits', {}):
        low, high = (
            row[f'{m} limits'][exp] for m in ('forward', 'forward+backward')
        )
        lines.append(
            (
                f'limit, {exp}',
                low,
                low / forward[base],
                high,
                high / both[base],
            )
        )
    common.print_markdown(
        f'(B, D, L, N) = {row["shape"]}',
        ['', 'forward, ms', 'ratio', 'forward+backward, ms', 'ratio'],
        lines,
    )


def print_limits(rows: list[dict]) -> None:
    """Print what the machine can do, and the fractions reached."""
    rates = {
        name: statistics.median(
            row[f'{mode} rates'][name]
            for row in rows
            for mode in ('forward', 'forward+backward')
        )
        for name in rows[0]['forward rates']
    }
    common.print_markdown(
        'One core, medians; ns per 16 lanes (exp: with a multiplication)',
        list(rates),
        [list(rates.values())],
    )
    base = next(iter(rows[0]['forward']))
    common.print_markdown(
        f'Fraction of the limit which {base!r} reaches',
        [
            '(B, D, L, N)',
            *('forward', 'forward+backward'),
            *('forward, exp by table', 'forward+backward, exp by table'),
        ],
        [
            (
                row['shape'],
                *(
                    row[f'{mode} limits'][exp] / row[mode][base]
                    for exp in ('exp', 'exp by table')
                    for mode in ('forward', 'forward+backward')
                ),
            )
            for row in rows
        ],
    )


def threads(counts: list[int], args) -> list[dict]:
    """Wall time of our backends with several numbers of threads."""
    scans = {k: v for k, v in peers.all_scans().items() if k in peers.OURS}
    results = []
    for shape in QUICK_SHAPES if args.quick else SHAPES:
        inputs = peers.scan_inputs(shape, args.layout)
        dout = torch.randn(shape[0], shape[2], shape[1]).mT
        times = {}
        for _ in range(args.rounds + 1):  # the first one warms up
            for count in counts:
                torch.set_num_threads(count)
                for name, scan in scans.items():
                    for mode in ('forward', 'forward+backward'):
                        start = time.perf_counter()
                        if mode == 'forward':
                            peers.forward(scan, inputs)
                        else:
                            peers.forward_backward(scan, inputs, dout)
                        seconds = time.perf_counter() - start
                        key = (name, mode, count)
                        times.setdefault(key, []).append(1e3 * seconds)
        medians = {k: statistics.median(v[1:]) for k, v in times.items()}
        lines = [
            (
                *(name, mode),
                *(medians[name, mode, count] for count in counts),
                *(
                    medians[name, mode, counts[0]] / medians[name, mode, count]
                    for count in counts[1:]
                ),
            )
            for name in scans
            for mode in ('forward', 'forward+backward')
        ]
        header = ['', 'mode', *(f'{count} threads, ms' for count in counts)]
        header += [f'speed-up, {count}' for count in counts[1:]]
        common.print_markdown(
            f'Wall time, (B, D, L, N) = {shape}', header, lines
        )
        results.append(dict(shape=shape, header=header, rows=lines))
    return results


def plot(path: Path, results: dict) -> None:
    """Draw speed-ups, and the time per token over the length."""
    import matplotlib

    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    rows = results.get('scan', [])
    base = next(iter(rows[0]['forward'])) if rows else ''
    for mode, marker in (('forward', 'o'), ('forward+backward', 's')):
        names = sorted({k for row in rows for k in row['forward']} - {base})
        for i, name in enumerate(names):
            points = [
                (str(row['shape']), row[mode][name] / row[mode][base])
                for row in rows
                if name in row[mode]
            ]
            label = f'{name}, {mode}'
            left.plot(*zip(*points), marker, color=f'C{i}', label=label)
    left.set_yscale('log')
    left.set_ylabel(f'time / time of {base!r}')
    left.tick_params(axis='x', labelrotation=30, labelsize=7)
    left.legend(fontsize=6)
    length = results.get('lengths', {})
    for mode in ('forward', 'forward+backward'):
        if mode in length:
            right.plot(length['L'], length[mode], 'o-', label=mode)
    right.set_xscale('log', base=2)
    right.set_ylim(bottom=0)
    right.set_xlabel('L')
    right.set_ylabel('ns per token')
    if length:
        right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the parts asked for."""
    args = parse_args()
    torch.set_num_threads(1)
    print(common.environment())
    if args.threads:
        common.write_json(args.json, {'threads': threads(args.threads, args)})
        return
    scans = peers.all_scans()
    base = next(iter(scans))
    results = {}
    if 'scan' in args.only:
        limit = machine_limit.make()
        rows = results['scan'] = []
        for shape in QUICK_SHAPES if args.quick else SHAPES:
            rows.append(measure(scans, shape, limit, args))
            print_row(rows[-1])
        if limit is not None:
            print_limits(rows)
    rounds, quick = args.rounds, args.quick
    parts = {
        'ordered': lambda: scan_parts.ordered(base, quick, rounds),
        'conv': lambda: scan_parts.conv(quick, rounds),
        'norm': lambda: scan_parts.norm(quick, rounds),
        'permute': lambda: scan_parts.permute(quick, rounds),
        'lengths': lambda: scan_parts.lengths(base, quick, rounds),
        'memory': lambda: scan_memory.memory(
            [k for k in scans if k not in LOOPS], quick
        ),
    }
    for name, part in parts.items():
        if name in args.only:
            results[name] = part()
    if not quick:
        results['bars'] = print_bars(results, base)
    common.write_json(args.json, results)
    if args.plot:
        plot(args.plot, results)


if __name__ == '__main__':
    main()
