# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""How backend ``'triton'`` cuts a scan up.  The one place to tune.

Measured on an H200 (``docs/results/gpu``): what counts is that a program has
read the inputs of the coming steps before it needs them, and the compiler
only leaves such reads where they are written if a loop carries their results
from one pass to the next.  Limiting registers for the sake of more warps did
not pay, and cutting up the length only where a multiprocessor would have few
warps.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch

from ..triton_launch import power_of_2
from .problem import ScanProblem

SHORTEST, MOST_SEGMENTS = 32, 64  # see segments()


class Tiling(NamedTuple):
    """Sizes of a problem's tiles; see :func:`tiling`.

    Attributes:
        BN: rows of a tile, the number of states N rounded up.
        BD: columns of a tile, channels per program.
        CH: steps whose states the backward pass holds in registers.
        span: chunks of CH steps per state that is kept in memory.
        num_warps: warps per program.
        ahead: steps whose inputs the forward pass holds in registers before
            they are needed; divides :attr:`period`.
        resident: (forward, backward), the warps per multiprocessor for which
            the length is cut up if there are fewer.
    """

    BN: int
    BD: int
    CH: int
    span: int
    num_warps: int
    ahead: int
    resident: tuple[int, int]

    @property
    def period(self) -> int:
        """Steps per state that is kept in memory."""
        return self.CH * self.span


def of_problem(p: ScanProblem) -> Tiling:
    """Choose the tiling of a problem."""
    batch, K, _, channels, N = p.sizes
    return tiling(
        N,
        channels // p.groups,
        batch * K * channels,
        p.u.element_size(),
        _capability(p.u.device),
    )


def tiling(
    N: int,
    channels: int,
    scans: int,
    bytes: int = 4,
    capability: Optional[str] = None,
) -> Tiling:
    """Choose the sizes of tiles.

    Those of ``triton_tilings.json`` where it has the card and the kind of
    scan, else by these rules:

    * A thread has at most 16 values of each tile.  The backward pass holds
      those of CH = 2 steps, four more and what it has read ahead in 255
      registers.  Small tiles can afford CH = 8.
    * One warp per program as long as that leaves 16 channels, a sector of
      memory in bfloat16: sums then need no exchange between warps.
    * A state is kept in memory every 8 steps, which takes N / 8 times the
      memory of ``u`` in float32.  To get from there to the last of the 8
      steps, the others are computed once more.

    Args:
        N: number of states.
        channels: channels per group.
        scans: how many independent scans of one channel there are in all.
        bytes: of an element of ``u``.  Default 4.
        capability: of the card, as '9.0'.  Default None: not known.

    Returns:
        Tiling: the sizes.
    """
    BN = power_of_2(N)
    widest = max(16, power_of_2(channels))
    for row in measured_tilings():
        kind = row['capability'], row['BN'], row['bytes']
        if kind == (capability, BN, bytes) and (
            row['most_scans'] is None or scans <= row['most_scans']
        ):
            BD, CH, span, warps, ahead = row['tile']
            while widest < BD:
                BD, warps = BD // 2, max(1, warps // 2)
            resident = tuple(row['resident'])
            return Tiling(BN, BD, CH, span, warps, ahead, resident)
    BD = min(32 if BN <= 16 else 16, widest)
    warps = max(1, BN * BD // 512)
    if BN * BD <= 128:
        return Tiling(BN, BD, 8, 1, warps, 4, (24, 24))
    return Tiling(BN, BD, 2, 4, warps, 2, (6, 6))


@functools.cache
def measured_tilings() -> list[dict[str, Any]]:
    """Read what ``benchmarks/gpu.py --only tuning`` has found.

    Returns:
        list[dict]: fields of :class:`Tiling`, ``tile`` being (BD, CH, span,
        num_warps, ahead), for the card's ``capability``, ``BN``, ``bytes``
        and the ``most_scans`` (None: any) up to which it is the best; the
        first that fits counts.
    """
    path = Path(__file__).with_name('triton_tilings.json')
    return json.loads(path.read_text())


def segments(p: ScanProblem, t: Tiling, resident: int) -> int:
    """Choose into how many segments the length is cut.

    Args:
        p: the problem.
        t: its tiling.
        resident: see :class:`Tiling`.

    Returns:
        int: at least 1; no segment but the last is shorter than
        :data:`SHORTEST` steps, and there are at most :data:`MOST_SEGMENTS`.
    """
    batch, K, length, _, _ = p.sizes
    warps = batch * K * blocks(p, t) * t.num_warps
    wanted = resident * multiprocessors(p.u.device) // max(1, warps)
    most = max(1, min(wanted, length // SHORTEST, MOST_SEGMENTS))
    return whole_segments(length, t.period, most)


def whole_segments(length: int, period: int, most: int) -> int:
    """Into how many segments of equally many periods a length falls.

    Args:
        length: steps.
        period: steps that stay together.
        most: no more segments than this.
    """
    periods = -(-length // period)
    return -(-periods // -(-periods // most))


def blocks(p: ScanProblem, t: Tiling) -> int:
    """Number of programs per sample, direction and segment."""
    return p.groups * -(-p.sizes[3] // (p.groups * t.BD))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many a GPU has; 1 for the interpreter."""
    if device.type != 'cuda':
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _capability(device: torch.device) -> Optional[str]:
    """Compute capability of an NVIDIA card, else None."""
    if device.type != 'cuda' or torch.version.hip:
        return None
    return '{}.{}'.format(*torch.cuda.get_device_capability(device))
