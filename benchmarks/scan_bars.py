# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the scan has to reach, beside what it reached."""

from collections.abc import Iterator
from typing import Optional

import common
import torch

FORWARD, BOTH = 'forward', 'forward+backward'
SMALL, BATCH = (8, 384, 197, 16), (32, 192, 64, 16)
VMAMBA = (2, 384, 3136, 1)


class Bar:
    """One requirement.

    Args:
        text: what is compared.
        required: bound on the figure.
        measured: the figure.
        at_most: whether the bound is an upper one.  Default False.
    """

    def __init__(
        self,
        text: str,
        required: float,
        measured: float,
        at_most: bool = False,
    ):
        self.text, self.required, self.measured = text, required, measured
        self.sign = '<=' if at_most else '>='
        self.passed = measured <= required if at_most else measured >= required


def _ratio(rows: dict, shape, mode: str, peer: str, ours: str):
    times = rows.get(shape, {}).get(mode, {})
    if peer in times and ours in times:
        return times[peer] / times[ours]
    return None


def _scan_bars(results: dict, base: str) -> Iterator[Optional[Bar]]:
    rows = {tuple(row['shape']): row for row in results.get('scan', [])}
    # With half the lanes, half the speed-up is asked for.
    wide = torch.backends.cpu.get_cpu_capability() == 'AVX512'
    share = 1 if wide else 0.5

    def faster(required, shapes, mode, peer, ours=base):
        ratios = [_ratio(rows, s, mode, peer, ours) for s in shapes]
        ratios = [r for r in ratios if r is not None]
        if not ratios:
            return None
        names = ', '.join(str(s) for s in shapes)
        text = f'{peer} / {ours}, {mode}, {names}'
        if len(shapes) > 1:
            text += ', least'
        return Bar(text, required * share, min(ratios))

    yield faster(55, [SMALL], FORWARD, 'ref')
    yield faster(100, [(2, 384, 1024, 16)], FORWARD, 'ref')
    yield faster(30, [VMAMBA], FORWARD, 'ref')
    yield faster(120, [BATCH], BOTH, 'ref')
    yield faster(1200, [SMALL], BOTH, 'ref')
    many = [s for s in rows if s[3] == 16 and s[2] >= 197]
    yield faster(120, many, BOTH, 'mambapy')
    yield faster(40, [BATCH], BOTH, 'mambapy')
    yield faster(16, [VMAMBA], BOTH, 'mambapy')
    for mode, required in ((FORWARD, 0.6), (BOTH, 0.5)):
        row = rows.get(SMALL, {})
        if f'{mode} limits' in row:
            reached = row[f'{mode} limits']['exp'] / row[mode][base]
            text = f'fraction of the limit, {mode}, {SMALL}'
            yield Bar(text, required, reached)
    if base != 'torch':
        yield faster(80 / share, [SMALL], BOTH, 'ref', 'torch')


def _part_bars(results: dict, base: str) -> Iterator[Optional[Bar]]:
    one = [
        figures[BOTH]['copies'] / figures[BOTH]['orders']
        for name, figures in results.get('ordered', {}).items()
        if name.endswith(', 1')
    ]
    if one:
        text = f'copies / orders, four directions, {BOTH}, N=1, least'
        yield Bar(text, 2.5, min(one))
    if 'conv' in results:
        ours, peer = results['conv'][BOTH].values()
        yield Bar(
            f'conv1d + silu / causal_conv1d_silu, {BOTH}', 4, peer / ours
        )
    memory = results.get('memory', {})
    if base in memory and 'mambapy' in memory:
        text = f'peak memory, {base} / mambapy, {BOTH}'
        yield Bar(text, 1 / 15, memory[base] / memory['mambapy'], True)
    for mode in (FORWARD, BOTH):
        if 'lengths' in results:
            times = results['lengths'][mode]
            text = f'time per token, {mode}, largest / smallest'
            yield Bar(text, 1.15, max(times) / min(times), True)


def print_bars(results: dict, base: str) -> list[dict]:
    """Print the requirements that the results can tell about.

    Args:
        results: of ``scan.py``.
        base: backend that is meant.

    Returns:
        list[dict]: fields of each.
    """
    bars = [*_scan_bars(results, base), *_part_bars(results, base)]
    bars = [bar for bar in bars if bar is not None]
    common.print_markdown(
        'Bars',
        ['bar', 'required', 'measured', ''],
        [
            (
                bar.text,
                f'{bar.sign} {bar.required:.3g}',
                float(bar.measured),
                'pass' if bar.passed else 'FAIL',
            )
            for bar in bars
        ],
    )
    return [vars(bar) for bar in bars]
