# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Folders of Hugging Face, read tensor by tensor."""

import json

import pytest
import torch
from safetensors.torch import save_file

from transmamba_mm.checkpoints import (
    CheckpointError,
    LazyTensors,
    read_state_dict,
)


@pytest.fixture
def tensors():
    return {
        'a.weight': torch.randn(300, 200),  # too large to be kept
        'a.bias': torch.randn(4, dtype=torch.float64),
        'b': torch.randn(3).bfloat16(),
    }


@pytest.fixture
def folder(tmp_path, tensors):
    files = {'a.weight': '1.safetensors', 'a.bias': '2.safetensors'}
    files['b'] = '2.safetensors'
    for file in set(files.values()):
        part = {k: v for k, v in tensors.items() if files[k] == file}
        save_file(part, tmp_path / file)
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(json.dumps(dict(metadata={}, weight_map=files)))
    return tmp_path


def check(found, tensors):
    assert isinstance(found, LazyTensors)
    assert set(found) == set(tensors) and len(found) == len(tensors)
    for name, value in tensors.items():
        for _ in range(2):
            assert found[name].dtype == value.dtype
            assert found[name].equal(value)


def test_shards_by_folder_and_by_index(folder, tensors):
    check(read_state_dict(str(folder)), tensors)
    index = folder / 'model.safetensors.index.json'
    check(read_state_dict(str(index)), tensors)


def test_a_folder_of_one_file(tmp_path, tensors):
    save_file(tensors, tmp_path / 'model.safetensors')
    check(read_state_dict(str(tmp_path)), tensors)


def test_names_may_change_and_tensors_be_replaced(folder, tensors):
    found = read_state_dict(str(folder)).renamed({'x': 'a.weight', 'y': 'b'})
    assert found['x'].equal(tensors['a.weight']) and 'b' not in found
    found['y'] = torch.zeros(1)
    assert found.pop('y').equal(torch.zeros(1)) and list(found) == ['x']
    with pytest.raises(KeyError):
        found['y']


def test_what_is_wrong_is_named(folder, tmp_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(CheckpointError, match='a folder without model'):
        read_state_dict(str(empty))
    index = folder / 'model.safetensors.index.json'
    files = json.loads(index.read_text())['weight_map']
    for weight_map, message in (
        ({**files, 'c': '1.safetensors'}, 'expects c in'),
        ({**files, 'c': '3.safetensors'}, 'does not exist'),
        ({**files, 'c': '../3.safetensors'}, 'no index of shards'),
        ([], 'no index of shards'),
    ):
        index.write_text(json.dumps(dict(weight_map=weight_map)))
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(str(folder))
    index.write_text('{')
    with pytest.raises(CheckpointError, match='no index of shards'):
        read_state_dict(str(folder))
    index.write_text(json.dumps(dict(weight_map=files)))
    (folder / '2.safetensors').write_bytes(b'\x08')
    with pytest.raises(CheckpointError, match='cannot be read'):
        read_state_dict(str(folder))
