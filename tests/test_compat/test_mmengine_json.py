# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What MMEngine dumps as JSON is JSON."""

import json
import math

import mmengine
import numpy as np
import pytest
from mmengine.visualization import LocalVisBackend


def refuse(name):
    raise AssertionError(f'{name} is no JSON')


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('kind', [float, np.float32, np.float64])
def test_what_is_not_finite_is_null(tmp_path, value, kind):
    content = dict(
        a=[kind(value), 1.5], b={'c': np.array([value, 2.0])}, d='é'
    )
    mmengine.dump(content, tmp_path / 'x.json', indent=1)
    text = (tmp_path / 'x.json').read_text()
    wanted = dict(a=[None, 1.5], b=dict(c=[None, 2.0]), d='é')
    assert json.loads(text, parse_constant=refuse) == wanted
    assert text.count('\n') > 5
    assert mmengine.dump(content, file_format='json') != text
    assert json.loads(mmengine.dump(content, file_format='json')) == wanted


def test_what_is_finite_is_as_before():
    content = {'a': {1}, 2: [0.1, True, None], 'b': np.int64(3)}
    text = '{"a": [1], "2": [0.1, true, null], "b": 3}'
    assert mmengine.dump(content, file_format='json') == text


def test_scalars(tmp_path):
    backend = LocalVisBackend(str(tmp_path))
    backend.add_scalars(dict(loss=math.nan, lr=0.1), step=1)
    backend.add_scalars(dict(loss=0.5), step=2)
    lines = (tmp_path / 'scalars.json').read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows == [dict(loss=None, lr=0.1, step=1), dict(loss=0.5, step=2)]
