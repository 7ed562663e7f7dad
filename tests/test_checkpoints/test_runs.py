# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The checkpoint that a run goes on with is its own."""

import shutil

import mmengine
import pytest
import torch

from transmamba_mm.checkpoints import (
    CheckpointError,
    find_latest_checkpoint,
    runs,
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run as MMEngine leaves it, its pointer relative to its parent."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'run'
    folder.mkdir()
    for step in (1, 2, 10):
        torch.save(dict(w=torch.zeros(1)), folder / f'epoch_{step}.pth')
    (folder / 'last_checkpoint').write_text('run/epoch_10.pth')
    return folder


@pytest.fixture
def said(monkeypatch):
    """The warnings."""
    lines = []
    monkeypatch.setattr(
        runs, 'print_log', lambda text, **_: lines.append(text)
    )
    return lines


def found(folder):
    return find_latest_checkpoint(str(folder))


def test_mmengine_uses_it():
    assert mmengine.runner.find_latest_checkpoint is find_latest_checkpoint
    runner = mmengine.runner.runner
    assert runner.find_latest_checkpoint is find_latest_checkpoint


def test_the_named_file_is_found(run, tmp_path, monkeypatch):
    assert found(run) == str(run / 'epoch_10.pth')
    assert found('run') == 'run/epoch_10.pth'
    monkeypatch.chdir('/')
    assert found(run) == str(run / 'epoch_10.pth')
    assert found(tmp_path / 'nowhere') is None


def test_a_copy_finds_its_own(run, tmp_path, said):
    shutil.copytree(run, tmp_path / 'copy')
    assert found('copy') == 'copy/epoch_10.pth'
    assert 'is taken instead' in said.pop()
    (tmp_path / 'copy' / 'epoch_10.pth').unlink()
    assert found('copy') == 'run/epoch_10.pth'  # with a warning
    assert 'leads out of its folder' in said.pop()


def test_a_folder_that_moved_finds_its_own(run, tmp_path, said):
    moved = run.rename(tmp_path / 'moved')
    assert found(moved) == str(moved / 'epoch_10.pth')
    assert not said
    (moved / 'epoch_10.pth').rename(moved / 'kept.pth')
    (moved / 'epoch_3.pth').write_bytes(b'PK cut short')
    assert found(moved) == str(moved / 'epoch_2.pth')
    assert 'is the newest here' in said.pop()


def test_without_a_pointer_the_newest_is_found(run, said):
    (run / 'last_checkpoint').unlink()
    assert found(run) == str(run / 'epoch_10.pth')
    assert 'is the newest' in said.pop()


@pytest.mark.parametrize(
    'content', [b'', b'\n', b'\xff\xfe', b'a\nb', b'a\0b']
)
def test_a_pointer_to_nothing_is_refused(run, content):
    (run / 'last_checkpoint').write_bytes(content)
    with pytest.raises(CheckpointError, match=r'epoch_10\.pth. beside it'):
        found(run)


def test_a_deleted_checkpoint_is_told(run):
    (run / 'epoch_10.pth').unlink()
    with pytest.raises(CheckpointError, match=r'not exist.*epoch_2\.pth'):
        found(run)
