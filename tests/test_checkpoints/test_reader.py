# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""No file that is read as a checkpoint runs code, or crashes the reader."""

import os
from contextlib import suppress

import numpy as np
import pytest
import torch
from hostile_files import CONTENTS, FILES, MARK, STATEMENT, served, write
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import nn

from transmamba_mm.checkpoints import (
    CheckpointError,
    read_checkpoint,
    read_state_dict,
    write_weights,
)
from transmamba_mm.compat.environment import version_tuple

pytestmark = pytest.mark.skipif(
    version_tuple(torch.__version__) < (2, 6),
    reason='older versions of PyTorch read any pickle',
)
LINEAR = nn.Linear(3, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'zoo'))
    return tmp_path


def assert_refused(path):
    with pytest.raises(CheckpointError) as info:
        read_checkpoint(path)
    message = str(info.value)
    assert os.path.basename(path) in message
    assert '\n' not in message and 'weights_only' not in message
    assert not os.path.exists(MARK)
    return message


@pytest.mark.parametrize('kind', FILES)
def test_a_hostile_or_broken_file_is_one_line(kind):
    assert_refused(write(kind, 'x.pth'))


@pytest.mark.parametrize('scheme', ['http', 'open-mmlab', 'mmcls', 'local'])
def test_every_scheme_is_read_as_data(folder, scheme, monkeypatch):
    (folder / 'zoo').mkdir()
    write('system', folder / 'evil.pth')
    with served(folder) as url:
        path = f'{url}/evil.pth'
        zoo = dict(evil=path, mine='../evil.pth')
        if scheme == 'open-mmlab':
            (folder / 'zoo' / 'open_mmlab.json').write_text(
                str(zoo).replace("'", '"')
            )
            assert_refused('open-mmlab://mine')
            path = 'openmmlab://evil'
        elif scheme == 'mmcls':
            from transmamba_mm.checkpoints import reader

            monkeypatch.setitem(reader._ZOOS, 'mmcls', lambda: zoo)
            path = 'mmcls://evil'
        elif scheme == 'local':
            path = 'evil.pth'
        assert 'more than data' in assert_refused(path)
        assert not list((folder / 'hub').rglob('*.pth'))  # nor is it kept


def test_loaders_of_all_schemes_are_ours():
    names = {one.__name__ for one in CheckpointLoader._schemes.values()}
    assert names == {'load_from_data_only'}


def test_urls_are_read_and_failures_are_named(folder):
    torch.save(LINEAR.state_dict(), 'good.pth')
    (folder / 'half.pth').write_bytes((folder / 'good.pth').read_bytes()[:99])
    with served(folder) as url:
        assert read_state_dict(f'{url}/good.pth').keys() == {'weight', 'bias'}
        assert 'downloaded' in assert_refused(f'{url}/gone.pth')
        assert 'damaged' in assert_refused(f'{url}/half.pth')
        (folder / 'half.pth').write_bytes((folder / 'good.pth').read_bytes())
        assert read_state_dict(f'{url}/half.pth')
        # Two of one name are two.
        (folder / 'other').mkdir()
        torch.save(dict(w=torch.ones(1)), folder / 'other' / 'good.pth')
        assert read_state_dict(f'{url}/other/good.pth').keys() == {'w'}
        # What torch.hub has is not fetched again.
        (folder / 'hub' / 'checkpoints').mkdir()
        torch.save(dict(v=torch.ones(1)), 'hub/checkpoints/hubs.pth')
        assert read_state_dict(f'{url}/hubs.pth').keys() == {'v'}
    assert 'downloaded' in assert_refused(f'{url}/other.pth')
    assert 'nothing here reads' in assert_refused('ftp://host/x.pth')
    assert 'none of the models' in assert_refused('torchvision://what')


def test_what_is_no_file_is_named(folder):
    (folder / 'dir').mkdir()
    os.symlink('nowhere', folder / 'link.pth')
    os.mkfifo(folder / 'pipe')
    for path, reason in (
        ('dir', 'is a folder'),
        ('link.pth', 'is a link'),
        ('pipe', 'no regular file'),
        ('gone.pth', 'does not exist'),
    ):
        assert reason in assert_refused(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint('gone.pth')


def test_a_file_cut_short_anywhere_is_damaged(folder):
    torch.save({str(i): torch.ones(9) for i in range(40)}, 'x.pth')
    whole = (folder / 'x.pth').read_bytes()
    for part in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        (folder / 'cut.pth').write_bytes(whole[: int(part * len(whole))])
        assert 'is damaged' in assert_refused('cut.pth')


def test_the_newest_whole_checkpoint_is_named(folder):
    for step in (2, 9, 10):
        torch.save(LINEAR.state_dict(), f'epoch_{step}.pth')
    (folder / 'epoch_11.pth').write_bytes(FILES['truncated']())
    for path in ('epoch_11.pth', 'epoch_12.pth'):
        assert "'epoch_10.pth' beside it is whole" in assert_refused(path)


def test_configs_that_are_code_are_left_out():
    plain = "model = dict(type='A', custom_keys={'.x': [1, -2.5, (None,)]})"
    for text, kept in ((STATEMENT, False), (plain, True)):
        meta = dict(config=text, cfg=text)
        hub = dict(runtime_info=dict(cfg=text))
        content = dict(meta=meta, state_dict=LINEAR.state_dict())
        torch.save(dict(content, message_hub=hub), 'x.pth')
        content = read_checkpoint('x.pth')
        assert 'config' not in content['meta']
        assert ('cfg' in content['meta']) is kept
        assert ('cfg' in content['message_hub']['runtime_info']) is kept
        assert not os.path.exists(MARK)


@settings(max_examples=40, deadline=None, database=None)
@given(st.data())
def test_numpy_data_is_what_it_was(tmp_path_factory, data):
    kinds = ['f2', 'f4', '<f8', '>f8', 'c8', 'i1', '>i2', 'u8', 'b1']
    kind = data.draw(st.sampled_from([*kinds, 'U3', '>U2', 'S4']))
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    array = np.resize(np.arange(5).astype(kind), shape)
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    scalar = np.arange(5).astype(kind)[3]
    path = str(tmp_path_factory.mktemp('numpy') / 'x.pth')
    for _ in range(2):  # what has been read is written as numpy's own
        torch.save(dict(w=torch.zeros(1), x=array, y=scalar), path)
        read = read_checkpoint(path)
        assert np.array_equal(read['x'], array)
        # As numpy itself, which reads into the order of the machine.
        assert read['x'].dtype == array.dtype.newbyteorder('=')
        assert read['y'] == scalar and type(read['y']) is type(scalar)
        array, scalar = read['x'], read['y']


def test_a_history_cannot_change_its_class():
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    methods = dict(HistoryBuffer._statistics_methods)
    swapped = HistoryBuffer([1.0], [1])
    vars(swapped)['_statistics_methods'] = dict(mean=HistoryBuffer.max)
    hub = dict(log_scalars=dict(a=buffer, b=swapped))
    torch.save(dict(w=torch.zeros(1), message_hub=hub), 'x.pth')
    read = read_checkpoint('x.pth')['message_hub']['log_scalars']
    assert all(type(one) is HistoryBuffer for one in read.values())
    assert read['a'].mean() == 2 and read['a'].statistics('max') == 3
    read['a'].update(5)
    assert HistoryBuffer._statistics_methods == methods
    assert vars(read['b']).keys() == vars(HistoryBuffer()).keys()


def test_safetensors_keep_metadata(folder):
    path = str(folder / 'x.safetensors')
    write_weights(path, LINEAR.state_dict(), dict(epoch=3, classes=['a']))
    content = read_checkpoint(path)
    assert content['meta'] == dict(epoch=3, classes=['a'])
    state = content['state_dict']
    assert state._metadata == LINEAR.state_dict()._metadata
    assert torch.equal(state['weight'], LINEAR.weight)
    (folder / 'x.safetensors').write_bytes(
        (folder / 'x.safetensors').read_bytes()[:-9]
    )
    assert_refused(path)


def test_plain_torch_load_is_safe_as_well():
    """The classes that we declare safe are so for all of torch's readers."""
    for name in CONTENTS:
        write(name, 'x.pth')
        with suppress(Exception):
            torch.load('x.pth', weights_only=True)
    assert not os.path.exists(MARK)
