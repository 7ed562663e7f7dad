# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TorchScript archives give their tensors, and run nothing."""

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hostile_files import COMMAND, MARK, Call
from retrieval_models import build_random, text_cfg, vision_cfg
from torch import Tensor, nn

from transmamba_mm.checkpoints import CheckpointError, read_state_dict

pytestmark = [
    pytest.mark.filterwarnings(f'ignore::{name}')
    for name in (
        'DeprecationWarning',
        'FutureWarning',
        'torch.jit.TracerWarning',
    )
]


def saved(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(module, path)
        return torch.jit.load(path).state_dict()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2).half()
        self.part = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2))
        self.register_buffer('odd', torch.arange(6).view(2, 3).T)
        self.sizes = [1, 2]
        self.name = 'x'

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def cases():
    tower, text = build_random(vision_cfg()), build_random(text_cfg())
    images, tokens = torch.randn(2, 3, 16, 16), torch.randint(1, 9, (2, 5))
    yield 'scripted', torch.jit.script(Model())
    yield 'vision', torch.jit.trace(tower, images, check_trace=False)
    yield 'text', torch.jit.trace(text, tokens, check_trace=False)


def test_tensors_are_those_of_jit_load(tmp_path):
    for name, module in cases():
        expected = saved(module, path := str(tmp_path / f'{name}.pt'))
        found = read_state_dict(path)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def changed(source, target, **members):
    """Copies an archive with other content in some of its members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for part in old.infolist():
            name = part.filename.partition('/')[2]
            content = members.pop(name, None) or old.read(part)
            new.writestr(part.filename, content)
    assert not members
    return str(target)


@pytest.fixture
def archive(tmp_path):
    path = str(tmp_path / 'model.pt')
    saved(torch.jit.script(Model()), path)
    return path


def test_calls_are_refused_and_not_made(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(Call(os.system, COMMAND), protocol=2)
    path = changed(archive, tmp_path / 'bad.pt', **{'data.pkl': content})
    with pytest.raises(CheckpointError, match='holds more than data') as error:
        read_state_dict(path)
    assert 'system' in str(error.value) and '\n' not in str(error.value)
    assert not Path(MARK).exists()


def test_code_is_not_even_read(archive, tmp_path):
    with zipfile.ZipFile(archive) as file:
        code = [
            name.partition('/')[2]
            for name in file.namelist()
            if '/code/' in name and name.endswith('.py')
        ]
    assert code
    broken = dict.fromkeys(code, b'no code at all')
    path = changed(archive, tmp_path / 'bad.pt', **broken)
    with pytest.raises(RuntimeError):
        torch.jit.load(path)
    assert read_state_dict(path).keys() == read_state_dict(archive).keys()


def test_a_damaged_archive_is_one_line(archive, tmp_path):
    path = changed(archive, tmp_path / 'bad.pt', **{'data/0': b'ab'})
    with pytest.raises(CheckpointError, match='cannot be read'):
        read_state_dict(path)
