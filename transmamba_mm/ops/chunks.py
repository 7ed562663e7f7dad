# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Sums over rows of which one chunk is in memory at a time."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Scores of a chunk: 128 MiB of float32.
MAX_SCORES = 2**25


def summed_in_chunks(
    function: Callable[..., Tensor],
    *rows: Tensor,
    width: int,
    max_scores: int = MAX_SCORES,
) -> Tensor:
    """``function(*rows)``, a sum over rows, chunk by chunk.

    What the function keeps for the backward pass is not kept but computed
    again there, so that neither pass holds more than one chunk of it.

    Args:
        function (Callable): Gives the sum (scalar) over the rows it gets. It
            draws no random numbers.
        *rows (Tensor): (M, ...) each.
        width (int): What the function makes of a row: its scores, for which
            the chunks are cut.
        max_scores (int): Scores of a chunk, which has one row at least.
            Defaults to :data:`MAX_SCORES`.

    Returns:
        Tensor: Scalar.
    """
    size = max(1, max_scores // width)
    total = 0
    for chunk in zip(*(each.split(size) for each in rows)):
        total = total + checkpoint(
            function, *chunk, use_reentrant=False, preserve_rng_state=False
        )
    return total
