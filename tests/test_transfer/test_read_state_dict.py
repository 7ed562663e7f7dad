# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoint files of several code bases."""

import pytest
import torch
from mmengine.logging import HistoryBuffer

from transmamba_mm.checkpoints import read_state_dict

TENSORS = {'a.weight': torch.arange(6.0).view(2, 3), 'b': torch.ones(1)}


def save(tmp_path, content):
    path = tmp_path / 'model.pth'
    torch.save(content, path)
    return str(path)


def assert_read(path, expected=TENSORS):
    state = read_state_dict(path)
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].equal(value)


@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model', 'module'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_wrappers_and_data_parallel_prefix(tmp_path, wrapper, prefix):
    content = {prefix + k: v for k, v in TENSORS.items()}
    if wrapper:
        content = {wrapper: content, 'optimizer': {'lr': 1.0}, 'epoch': 3}
    assert_read(save(tmp_path, content))


def test_a_prefix_that_is_not_everywhere_belongs_to_the_names(tmp_path):
    content = {'module.a': torch.ones(1), 'b': torch.ones(2)}
    assert_read(save(tmp_path, content), content)


def test_only_tensors_are_kept(tmp_path):
    assert_read(save(tmp_path, {**TENSORS, 'epoch': 1, 'name': 'x'}))


def test_a_runner_checkpoint_is_read_with_weights_only(tmp_path):
    """mmengine also stores its log buffers, which torch refuses by itself."""
    history = HistoryBuffer()
    history.update(0.5, 2)
    content = dict(
        meta=dict(epoch=1, cfg='model = dict()'),
        state_dict=TENSORS,
        message_hub=dict(log_scalars={'train/loss': history}),
    )
    assert_read(save(tmp_path, content))


class Malicious:
    def __reduce__(self):
        return (print, ('code of the checkpoint ran',))


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6),
    reason='torch.load is not weights_only by default',
)
def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    path = save(tmp_path, dict(state_dict=TENSORS, extra=Malicious()))
    with pytest.raises(ValueError, match='holds more than data'):
        read_state_dict(path)
    assert 'code of the checkpoint' not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    path = str(tmp_path / 'gone.pth')
    with pytest.raises(FileNotFoundError, match=r'gone\.pth'):
        read_state_dict(path)
    with pytest.raises(FileNotFoundError):
        read_state_dict(str(tmp_path))  # a folder is no checkpoint


@pytest.mark.parametrize(
    'content',
    [{}, dict(epoch=1), dict(state_dict={}), torch.ones(3), [torch.ones(3)]],
)
def test_a_file_without_tensors_is_refused(tmp_path, content):
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=r'model\.pth.*no tensors'):
        read_state_dict(path)
