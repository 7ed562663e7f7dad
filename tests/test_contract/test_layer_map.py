# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which teacher layer each student layer takes after."""

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from transmamba_mm.contract.layer_map import resolve_layer_map


@pytest.mark.parametrize(
    ('layer_map', 'student', 'teacher', 'expected'),
    [
        ('uniform', 4, 4, [0, 1, 2, 3]),
        ('uniform', 2, 12, [0, 11]),
        ('uniform', 3, 12, [0, 6, 11]),
        ('uniform', 4, 2, [0, 0, 1, 1]),
        ('uniform', 1, 12, [11]),
        ('uniform', 3, 1, [0, 0, 0]),
        ('first_n', 2, 4, [0, 1]),
        ('first_n', 4, 2, [0, 1, None, None]),
        ([3, None, 0], 3, 4, [3, None, 0]),
        ((1, 1), 2, 2, [1, 1]),
    ],
)
def test_layer_map(layer_map, student, teacher, expected):
    assert (
        resolve_layer_map(layer_map, [8] * student, [9] * teacher) == expected
    )


@examples(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.integers(1, 60))
def test_uniform_is_monotone_and_includes_both_ends(student, teacher):
    layers = resolve_layer_map('uniform', [8] * student, [8] * teacher)
    assert len(layers) == student
    assert layers == sorted(layers)
    assert layers[0] == 0
    assert layers[-1] == teacher - 1
    if student == teacher:
        assert layers == list(range(student))
    if student <= teacher:
        assert len(set(layers)) == student
    steps = [b - a for a, b in zip(layers, layers[1:])]
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize(
    ('layer_map', 'message'),
    [
        ('last_n', "'uniform', 'first_n' or a list, got 'last_n'"),
        ([0], 'for each of the 2'),
        ([0, 1, 2], 'for each of the 2'),
        ([0, 3], r'in 0\.\.2'),
        ([-1, 0], r'in 0\.\.2'),
        (['0', '1'], r'in 0\.\.2'),
        ([0.0, 1.0], r'in 0\.\.2'),
        (5, 'or a list, got 5'),
        (None, 'or a list, got None'),
    ],
)
def test_layer_map_mistakes(layer_map, message):
    with pytest.raises(ValueError, match=message):
        resolve_layer_map(layer_map, [8] * 2, [8] * 3)


def test_uniform_goes_stage_by_stage():
    swin, vmamba = [8] * 2 + [16] * 6, [8] * 2 + [16] * 3
    assert resolve_layer_map('uniform', vmamba, swin) == [0, 1, 2, 5, 7]
    # Stages that are not as many say nothing: all layers are one.
    assert resolve_layer_map('uniform', [8, 16], [8, 8, 8]) == [0, 2]
