# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Ranks of text-video retrieval, beside a sort of each row.

Run from the repository root, with the package installed::

    OMP_NUM_THREADS=1 python benchmarks/retrieval_metric.py

10,000 texts against as many videos, both ways. The peer makes the whole
matrix of similarities and sorts its rows, as CLIP4Clip's metric does.
"""

import common
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from transmamba_mm.evaluation import fair_ranks

WIDTH = 512


def ours(text: Tensor, video: Tensor) -> list[np.ndarray]:
    """Ranks (size,) of both ways, in chunks, fair to ties."""
    ids = torch.arange(len(text))
    both = (text, ids, video, ids), (video, ids, text, ids)
    return [fair_ranks(*sides).numpy() for sides in both]


def argsort(text: Tensor, video: Tensor) -> list[np.ndarray]:
    """Ranks (size,) of both ways, by a sort of all."""
    scores = (text @ video.mT).numpy()
    places = np.arange(len(scores))[:, None]
    return [
        1 + (np.argsort(-each, axis=1) == places).argmax(axis=1)
        for each in (scores, scores.T)
    ]


def main() -> None:
    """Prints seconds, memory, and how many ranks differ."""
    args = common.parse_args(__doc__)
    torch.set_num_threads(1)
    size = 1000 if args.quick else 10_000
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(size, WIDTH, generator=generator)
    text = video + 8 * torch.randn(size, WIDTH, generator=generator)
    pair = normalize(text, dim=1), normalize(video, dim=1)
    sides = dict(ours=lambda: ours(*pair), argsort=lambda: argsort(*pair))
    seconds = {
        name: value / 1000
        for name, value in common.interleaved(sides, rounds=3).items()
    }
    memory = {name: common.extra_peak_mb(run) for name, run in sides.items()}
    found = [np.concatenate(run()) for run in sides.values()]
    apart = int((found[0] != found[1]).sum())
    title = f'{size} x {size}, both ways'
    common.print_table(title, seconds, 'ours', 's')
    if None not in memory.values():
        common.print_table(f'{title}, peak memory', memory, 'ours', 'MiB')
    print(f'\n{apart} of {2 * size} ranks differ, by rounding')
    common.write_json(
        args.json, dict(seconds=seconds, mib=memory, ranks_apart=apart)
    )


if __name__ == '__main__':
    main()
