# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What runs with the same seeds say."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from transmamba_mm.arena import mean_and_deviation, paired_difference

FINITE = st.floats(-100, 100).map(lambda x: round(x, 2))
PAIRS = st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=8)


@given(PAIRS)
def test_interval_is_that_of_the_paired_t_test(pairs):
    """An independent implementation agrees, its verdict as well."""
    ours, theirs = ({i: x[k] for i, x in enumerate(pairs)} for k in (0, 1))
    found = paired_difference(ours, theirs)
    if mean_and_deviation([a - b for a, b in pairs])[1] < 1e-6:
        return  # the test divides by it
    test = ttest_rel(list(ours.values()), list(theirs.values()))
    low, high = test.confidence_interval(0.95)
    assert math.isclose(found.mean, (low + high) / 2, abs_tol=1e-9)
    assert math.isclose(found.interval, (high - low) / 2, rel_tol=1e-9)
    if abs(test.pvalue - 0.05) > 1e-9:
        assert found.is_separable == (test.pvalue < 0.05)


def test_only_shared_seeds_count():
    found = paired_difference({0: 5, 1: 7, 2: 90}, {1: 4, 0: 3, 9: 50})
    assert (found.mean, found.seeds) == (2.5, 2)
    with pytest.raises(ValueError, match='no seed in common'):
        paired_difference({0: 1}, {1: 1})


@pytest.mark.parametrize(
    ('ours', 'said'),
    [
        ({0: 3.0}, '+2.0 (one seed)'),
        ({0: 3.0, 1: 4.0}, '+2.0 ± 0.0'),
        ({0: 3.0, 1: 0.0}, '+0.0 ± 25.4, not separable'),
    ],
)
def test_what_is_said(ours, said):
    assert str(paired_difference(ours, {0: 1.0, 1: 2.0})) == said


def test_a_result_that_is_no_number_spoils_only_its_own():
    mean, deviation = mean_and_deviation([1.0, math.nan])
    assert math.isnan(mean)
    assert math.isnan(deviation)
    found = paired_difference({0: 1.0, 1: math.nan}, {0: 0.0, 1: 0.0})
    assert not found.is_separable
