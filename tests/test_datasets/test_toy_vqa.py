# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The toy questions: what is drawn is what is asked, and what is held out."""

import json
import re

import mmcv
import numpy as np
import pytest

from transmamba_mm.datasets.toy_videos import COLOURS, HELD_OUT, SHAPES
from transmamba_mm.datasets.toy_vqa import (
    QUESTIONS,
    Thing,
    draw_scene,
    make_toy_vqa,
    render,
)


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp('toy_vqa')
    return out, make_toy_vqa(out, 20, 10)


def rows(folder, split):
    return json.loads((folder / f'{split}.json').read_text())


def test_counts_and_files(toy, tmp_path):
    out, counts = toy
    assert counts['train']['questions'] == 60
    for split, turns, number in (('train', 3, 20), ('test', 1, 10)):
        found = rows(out, split)
        assert len(found) == number
        for row in found:
            assert len(row['conversations']) == 2 * turns
            assert row['conversations'][0]['value'].startswith('<image>\n')
            assert mmcv.imread(out / row['image']).shape == (36, 36, 3)
    assert all(counts['test'][kind] == 2 for kind in QUESTIONS)
    # The same again, byte by byte; complete, it is not made again.
    assert make_toy_vqa(tmp_path, 20, 10) == counts
    for path in sorted(out.rglob('*.*')):
        again = tmp_path / path.relative_to(out)
        assert again.read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match='choose another folder'):
        make_toy_vqa(tmp_path, 21, 10)
    with pytest.raises(ValueError, match='turns must be at most 5'):
        make_toy_vqa(tmp_path, 20, 10, turns=6)


def right(question, scene):
    """The answer by another route: from the words and the whole scene."""
    words = re.findall('[a-z]+', question)
    named = [w for w in words if w in (*COLOURS, *SHAPES)]

    def matching(word):
        return [x for x in scene if word in (x.colour, x.shape)]

    if words[0] == 'how':
        return str(len(matching(named[0])))
    if words[0] == 'any':
        both = [x for x in matching(named[0]) if x.shape == named[1]]
        return 'yes' if both else 'no'
    if words[0] in ('colour', 'shape'):
        (only,) = matching(named[0])
        return getattr(only, words[0])
    (one,), (other,) = matching(named[0]), matching(named[1])
    a, b, sign = {
        'left': (one.column, other.column, -1),
        'right': (one.column, other.column, 1),
        'above': (one.row, other.row, -1),
        'below': (one.row, other.row, 1),
    }[words[1]]
    return 'yes' if sign * (a - b) > 0 else 'no'


@pytest.mark.parametrize('held_out', [False, True])
def test_answers_are_right_and_combinations_held_out(held_out):
    asked = dict.fromkeys(QUESTIONS, 0)
    for seed in range(60):
        draw = np.random.default_rng(seed)
        scene = draw_scene(draw, held_out)
        new = [(x.colour, x.shape) in HELD_OUT for x in scene]
        assert new[0] == held_out and (held_out or not any(new))
        assert len({(x.column, x.row) for x in scene}) == len(scene)
        for kind, ask in QUESTIONS.items():
            found = ask(draw, scene)
            if found is not None:
                asked[kind] += 1
                assert right(found[0], scene) == found[1], found
    assert min(asked.values()) > 10


def test_things_are_where_they_are_said_to_be():
    scene = [Thing('red', 'square', 0, 2), Thing('blue', 'circle', 2, 0)]
    image = render(scene, 36, np.random.default_rng(0))
    assert image.shape == (36, 36, 3) and image.dtype == np.uint8
    near = np.abs(image[30, 6].astype(int) - COLOURS['red']).max()
    assert near < 30
    assert np.abs(image[6, 30].astype(int) - COLOURS['blue']).max() < 30
    assert image[18, 18].max() < 110
