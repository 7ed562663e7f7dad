# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""State dicts keep their metadata through wrappers and prefixes."""

import pytest
import torch
from torch import nn

from transmamba_mm.checkpoints import (
    read_checkpoint,
    read_state_dict,
    strip_prefix,
    unwrap_state_dict,
)
from transmamba_mm.compat.environment import version_tuple


class Versioned(nn.Linear):
    _version = 7


def model():
    return nn.Sequential(nn.Sequential(Versioned(2, 2)), Versioned(1, 1))


def test_a_part_keeps_its_metadata():
    whole, part = model().state_dict(), model()[0].state_dict()
    stripped = strip_prefix(whole, '0.')
    assert stripped.keys() == part.keys()
    assert stripped._metadata == part._metadata
    assert strip_prefix(dict(whole), '0.')._metadata == {}


@pytest.mark.parametrize('parallel', [False, True])
def test_reading_keeps_the_metadata(tmp_path, parallel):
    state = model().state_dict()
    content = nn.ModuleDict(dict(module=model())).state_dict()
    path = tmp_path / 'x.pth'
    torch.save(dict(model=content if parallel else state), path)
    assert read_state_dict(str(path))._metadata == state._metadata


def test_averaged_weights_are_read_if_asked_for(tmp_path):
    path = str(tmp_path / 'x.pth')
    last, mean = dict(w=torch.zeros(1)), {'module.w': torch.ones(1)}
    torch.save(dict(model=last, model_ema=mean), path)
    assert read_state_dict(path)['w'] == 0
    assert read_state_dict(path, ema=True)['w'] == 1
    with pytest.raises(ValueError, match=r'no averaged.*model_ema'):
        unwrap_state_dict(dict(model=last), ema=True)


class Stranger:
    """Not data."""


def _damaged(path, kind):
    torch.save(dict(w=torch.rand(1000)), path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            'half': whole[: len(whole) // 2],
            'empty': b'',
            'page': b'<html>404</html>',
            'noise': bytes(range(256)) * 4,
        }[kind]
    )


@pytest.mark.parametrize('kind', ['half', 'empty', 'page', 'noise'])
def test_damaged_files_are_named(tmp_path, kind):
    path = tmp_path / 'x.pth'
    _damaged(path, kind)
    with pytest.raises(ValueError, match=r'x\.pth.*is damaged.*again') as info:
        read_checkpoint(str(path))
    assert 'weights_only' not in str(info.value)


@pytest.mark.skipif(
    version_tuple(torch.__version__) < (2, 6),
    reason='older versions of PyTorch read any pickle',
)
def test_files_of_more_than_data_are_named(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(dict(w=Stranger()), path)
    with pytest.raises(ValueError, match=r'x\.pth.*more than data.*Stranger'):
        read_checkpoint(str(path))
    with pytest.raises(ValueError, match='path or URL, got None'):
        read_checkpoint(None)
