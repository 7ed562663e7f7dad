# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What runs with the same seeds say about two methods."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

import numpy as np
from scipy.stats import t as student_t

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """How much better one method is than another.

    Attributes:
        mean (float): Mean over the seeds of the difference.
        interval (float, optional): Half of the width of its confidence
            interval; None of a single seed.
        seeds (int): Seeds that both methods have.
    """

    mean: float
    interval: Optional[float]
    seeds: int

    @property
    def is_separable(self) -> bool:
        """bool: Whether the interval leaves out 0."""
        return self.interval is not None and abs(self.mean) > self.interval

    def __str__(self) -> str:
        if self.interval is None:
            return f'{self.mean:+.1f} (one seed)'
        verdict = '' if self.is_separable else ', not separable'
        return f'{self.mean:+.1f} \u00b1 {self.interval:.1f}{verdict}'


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Difference:
    """Compares two methods by the runs that have the same seeds.

    The interval is Student's, of the differences: it covers what changes
    from seed to seed, not the choice of the test images.

    Args:
        ours (Mapping[int, float]): A result by seed.
        theirs (Mapping[int, float]): Another method's.

    Returns:
        Difference: Ours minus theirs.

    Raises:
        ValueError: If they have no seed in common.
    """
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise ValueError(
            f'no seed in common: {sorted(ours)} and {sorted(theirs)}'
        )
    found = [ours[seed] - theirs[seed] for seed in shared]
    mean, deviation = mean_and_deviation(found)
    interval = None
    if len(found) > 1:
        quantile = student_t.ppf(0.5 + CONFIDENCE / 2, len(found) - 1)
        interval = float(quantile) * deviation / len(found) ** 0.5
    return Difference(mean, interval, len(found))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is 0 of a single value."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(spread)
