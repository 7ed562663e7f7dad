# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Time per image over the size of the image, Vim-tiny and DeiT-tiny."""

import math
from pathlib import Path
from typing import Optional

import backbone_peers
import common
import torch
from backbone_cases import DEIT_TINY, MODES, TINY, Case, presets, timed


def measure(args) -> dict[str, list[dict]]:
    """Time Vim-tiny and DeiT-tiny over the size of the image."""
    modes = MODES if args.resolution_training else MODES[:1]
    results = {mode: [] for mode in modes}
    (family, preset), *_ = presets([TINY]).values()
    for side in args.sizes:
        models = {
            'ours': family(preset, img_size=side),
            'deit': backbone_peers.deit(DEIT_TINY, side, args.our_linear),
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


def print_table(results: dict[str, list[dict]]) -> None:
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
    threads = torch.get_num_threads()
    kind = 'CPU' if threads == 1 else 'Wall'
    axes.set(xlabel='image side, pixels', ylabel=f'{kind} time per image, ms')
    axes.set_title(f'Patches of 16 pixels, threads: {threads}')
    axes.grid(True, which='both', color='0.9')
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
