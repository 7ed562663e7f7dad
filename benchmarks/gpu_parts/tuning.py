# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which sizes of tiles and how many segments are fastest, per kind of scan.

``tilings.json`` in the results' folder has the table that goes into
``transmamba_mm/ops/backends/triton_tilings.json``.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from transmamba_mm.ops.backends import triton_scan, triton_tiling
from transmamba_mm.ops.backends.triton_tiling import Tiling

from . import Context
from .times import in_parallel
from .timing import ALL, gpu_us, vision_scan

SECONDS = 240


class Kind(NamedTuple):
    """Scans that are tuned by one example.

    Attributes:
        shape: (B, D, L, N) of the example.
        K: its directions.
        most: ``B * K * D`` up to which its result is used; None for all.
        orders: whether it has orders.
    """

    shape: tuple[int, int, int, int]
    K: int
    most: Any
    orders: bool = False


KINDS = (
    Kind((64, 384, 197, 16), 1, 60_000),
    Kind((256, 384, 197, 16), 1, None),
    Kind((64, 96, 3136, 1), 4, None, orders=True),
    Kind((1, 384, 4096, 16), 1, 4_000),
)
TINY_KINDS = (Kind((1, 16, 9, 4), 1, None),)


class Choice(NamedTuple):
    """What is tried for scans with so many states, all combined.

    Attributes:
        blocks: (BD, warps).
        ahead: steps that the forward pass reads ahead.
        backward: (CH, span) of the backward pass; their product, the steps
            between two kept states, is the same.
    """

    blocks: tuple[tuple[int, int], ...]
    ahead: tuple[int, ...]
    backward: tuple[tuple[int, int], ...]

    def forward_tilings(self, N: int) -> Iterator[Tiling]:
        """Tilings that differ in the forward pass."""
        for (BD, warps), ahead in itertools.product(self.blocks, self.ahead):
            yield Tiling(N, BD, *self.backward[0], warps, ahead, (0, 0))

    def backward_tilings(self, N: int) -> Iterator[Tiling]:
        """Tilings that differ in the backward pass."""
        ahead = self.ahead[0]
        for (BD, warps), sizes in itertools.product(
            self.blocks, self.backward
        ):
            yield Tiling(N, BD, *sizes, warps, ahead, (0, 0))


CHOICES = {
    16: Choice(((32, 1), (16, 1)), (2, 1, 4), ((2, 4), (4, 2))),
    1: Choice(((32, 1), (64, 1), (64, 2)), (4, 2, 8), ((8, 1), (4, 2))),
    4: Choice(((16, 1),), (2,), ((8, 1), (4, 2))),
}
SEGMENTS = (1, 2, 4)
MANY_SEGMENTS = (1, 4, 16, 64)  # where there are few channels
FEW_SCANS = 4_000


@contextlib.contextmanager
def forced(t: Tiling, count: int) -> Iterator[None]:
    """Let all scans use a tiling and a number of segments."""
    before = triton_tiling.of_problem, triton_tiling.segments
    triton_tiling.of_problem = lambda p: t
    triton_tiling.segments = lambda p, t, resident: (
        triton_tiling.whole_segments(p.sizes[2], t.period, count)
    )
    try:
        yield
    finally:
        triton_tiling.of_problem, triton_tiling.segments = before


def example(kind: Kind, dtype: str, device) -> Any:
    dtype = getattr(torch, dtype)
    return vision_scan(kind.shape, kind.K, dtype, device, kind.orders)


def compile_candidate(job) -> Any:
    """Fill Triton's cache; return an error."""
    kind, dtype, t, is_forward = job
    try:
        p = example(kind, dtype, torch.device('cuda'))
        for count in (1, 2):
            with forced(t, count):
                out, _, states = triton_scan.forward(p, True)
                if is_forward:
                    triton_scan.forward(p, False)
                else:
                    triton_scan.backward(p, states, out, ALL)
        torch.cuda.synchronize()
    except Exception as error:
        return f'{job}: {type(error).__name__}: {error}'[:300]
    return None


def measure(kind: Kind, dtype: str, context: Context) -> dict[str, list]:
    """Times of all candidates for one kind, forward and backward."""
    p = example(kind, dtype, context.device)
    choice, N = CHOICES[kind.shape[3]], kind.shape[3]
    counts = SEGMENTS[:2] if context.tiny else SEGMENTS
    if kind.most and kind.most <= FEW_SCANS:
        counts = MANY_SEGMENTS
    found = dict(forward=[], backward=[])
    truth = None
    for t, count in itertools.product(choice.forward_tilings(N), counts):
        with forced(t, count):
            out, *_ = triton_scan.forward(p, True)
            truth = truth or [out]
            found['forward'].append(
                dict(
                    tiling=t._asdict(),
                    segments=count,
                    difference=difference(out, truth[0]),
                    us=gpu_us(lambda: triton_scan.forward(p, True), runs=5),
                    alone=gpu_us(lambda: triton_scan.forward(p, False), 5),
                )
            )
    truth = None
    for t, count in itertools.product(choice.backward_tilings(N), counts):
        with forced(t, count):
            out, _, states = triton_scan.forward(p, True)
            backward = functools.partial(
                triton_scan.backward, p, states, out, ALL
            )
            grads = backward()
            truth = truth or grads
            found['backward'].append(
                dict(
                    tiling=t._asdict(),
                    segments=count,
                    difference=max(map(difference, grads, truth)),
                    us=gpu_us(backward, runs=5),
                )
            )
    return found


def difference(x: torch.Tensor, y: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    x, y = x.float(), y.float()
    return float((x - y).abs().max() / y.abs().max().clamp_min(1e-30))


def best(kind: Kind, dtype: str, found: dict[str, list]) -> dict[str, Any]:
    """The entry of the table: the least time of forward and backward."""
    batch, channels, _, N = kind.shape
    pairs = [
        (forward, backward)
        for forward, backward in itertools.product(*found.values())
        if all(
            forward['tiling'][key] == backward['tiling'][key]
            for key in ('BD', 'num_warps')
        )
    ]
    forward, backward = min(pairs, key=lambda x: x[0]['us'] + x[1]['us'])
    card = None
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
    t = backward['tiling']
    programs = batch * kind.K * -(-channels // t['BD']) * t['num_warps']

    def resident(row):
        """Warps per multiprocessor that its segments add up to."""
        if card is None:
            return 0
        count, processors = row['segments'], card.multi_processor_count
        if count == 1:  # cut only what has fewer
            return programs // processors
        return -(-programs * count // processors)

    return dict(
        capability=card and f'{card.major}.{card.minor}',
        BN=N,
        bytes=getattr(torch, dtype).itemsize,
        most_scans=kind.most,
        tile=[
            *(t[key] for key in ('BD', 'CH', 'span', 'num_warps')),
            forward['tiling']['ahead'],
        ],
        resident=[resident(forward), resident(backward)],
        us=[round(forward['us'], 1), round(backward['us'], 1)],
    )


def run(context: Context) -> None:
    """Measure all kinds."""
    kinds = TINY_KINDS if context.tiny else KINDS
    dtypes = ('float32',) if context.tiny else ('bfloat16', 'float32')
    pairs = list(itertools.product(dtypes, kinds))
    errors = []
    if not context.tiny:
        # By the number of states: kinds may share compiled kernels.
        examples = {(x.shape[1:], x.K): x for x in reversed(kinds)}
        jobs = [
            (kind, dtype, t, is_forward)
            for dtype in dtypes
            for kind in examples.values()
            for is_forward, tilings in (
                (True, CHOICES[kind.shape[3]].forward_tilings),
                (False, CHOICES[kind.shape[3]].backward_tilings),
            )
            for t in tilings(kind.shape[3])
        ]
        errors = in_parallel(compile_candidate, jobs)
    results = dict(compile_errors=errors, kinds=[], table=[])
    for dtype, kind in pairs:
        if context.left < 10:
            results['stopped'] = 'time was up'
            break
        found = measure(kind, dtype, context)
        results['kinds'].append(dict(kind._asdict(), dtype=dtype, **found))
        results['table'].append(best(kind, dtype, found))
        context.save(results)
        table = json.dumps(results['table'], indent=1)
        (context.out / 'tilings.json').write_text(table + '\n')
        if not context.tiny:
            torch.cuda.empty_cache()


def markdown(results: dict) -> list[str]:
    """The table, and what the best gains over the first candidate."""
    lines = [
        '| BN | bytes | scans up to | (BD, CH, span, warps, ahead) | '
        'warps per multiprocessor | forward, us | backward, us |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in results['table']:
        forward, backward = row['us']
        lines.append(
            f'| {row["BN"]} | {row["bytes"]} | {row["most_scans"] or "all"} '
            f'| {tuple(row["tile"])} | {tuple(row["resident"])} | '
            f'{forward:.0f} | {backward:.0f} |'
        )
    for kind in results['kinds']:
        for which in ('forward', 'backward'):
            rows = kind[which]
            times = [row['us'] for row in rows]
            worst = max(row['difference'] for row in rows)
            lines += [
                '',
                f'{tuple(kind["shape"])}, K = {kind["K"]}, {kind["dtype"]}, '
                f'{which}: {len(rows)} candidates, {min(times):.0f} to '
                f'{max(times):.0f} us, which differ by at most {worst:.1e}.',
            ]
    return lines
