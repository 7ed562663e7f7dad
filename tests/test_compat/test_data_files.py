# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Annotation files run no code, unless they are trusted by name."""

import hashlib
import json
import os
import pickle

import mmengine
import numpy as np
import pytest
from hostile_files import COMMAND, MARK, Call
from mmpretrain.datasets import (
    CIFAR10,
    BaseDataset,
    MultiTaskDataset,
)

from transmamba_mm.compat.data_files import TRUSTED, UntrustedFileError

GOOD = dict(metainfo={}, data_list=[dict(img_path='a.png', gt_label=0)])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TRUSTED, raising=False)
    return tmp_path


def base(path):
    return BaseDataset(ann_file=path, pipeline=[])


def tasks(path):
    return MultiTaskDataset(path, metainfo=dict(tasks=['a']), pipeline=[])


@pytest.mark.parametrize('make', [base, tasks])
@pytest.mark.parametrize('suffix', ['pkl', 'pickle'])
def test_pickled_annotations_are_refused(folder, make, suffix):
    path = folder / f'x.{suffix}'
    path.write_bytes(pickle.dumps(Call(os.system, COMMAND)))
    with pytest.raises(UntrustedFileError, match=rf'x\.{suffix}.*{TRUSTED}'):
        make(str(path))
    assert not os.path.exists(MARK)


@pytest.mark.parametrize(
    'tag', ['object/apply:os.system', 'object/new:os.system', 'name:os.system']
)
def test_yaml_makes_no_objects(folder, tag):
    path = folder / 'x.yaml'
    value = '' if tag.startswith('name') else f" ['{COMMAND}']"
    path.write_text(f'!!python/{tag}{value}')
    with pytest.raises((UntrustedFileError, TypeError)):
        base(str(path))
    assert not os.path.exists(MARK)
    mmengine.dump(dict(a=(1, 2)), str(path))
    assert mmengine.load(str(path)) == dict(a=(1, 2))


def test_what_is_trusted_by_name_is_read(folder, monkeypatch):
    for name in 'ab':
        mmengine.dump(GOOD, f'{name}.pkl')
    monkeypatch.setenv(TRUSTED, os.pathsep.join(['gone.pkl', './a.pkl']))
    assert len(base('a.pkl')) == len(base(str(folder / 'a.pkl'))) == 1
    with pytest.raises(UntrustedFileError):
        base('b.pkl')
    # No dataset's: predictions, for instance.
    assert mmengine.load('b.pkl') == GOOD
    (folder / 'x.json').write_text(json.dumps(GOOD))
    assert len(base('x.json')) == 1


def test_trust_in_one_file_is_none_in_another(folder, monkeypatch):
    class Split(BaseDataset):
        """Reads two files, as RefCOCO does."""

        def __init__(self, ann_file, split_file):
            self.split_file = split_file
            super().__init__(ann_file=ann_file, pipeline=[])

        def load_data_list(self):
            mmengine.load(self.split_file, file_format='pkl')
            return super().load_data_list()

    mmengine.dump(GOOD, 'a.pkl')
    (folder / 'b.p').write_bytes(pickle.dumps(Call(os.system, COMMAND)))
    monkeypatch.setenv(TRUSTED, 'a.pkl')
    with pytest.raises(UntrustedFileError):
        Split('a.pkl', 'b.p')
    assert not os.path.exists(MARK)
    monkeypatch.setenv(TRUSTED, os.pathsep.join(['a.pkl', 'b.p']))
    mmengine.dump({}, 'b.p', file_format='pkl')
    assert len(Split('a.pkl', 'b.p')) == 1


@pytest.mark.parametrize('download', [False, True])
def test_cifar_is_checked_before_it_is_unpickled(
    folder, monkeypatch, download
):
    class Tiny(CIFAR10):
        train_list, test_list = [], []

    batches = folder / CIFAR10.base_folder
    batches.mkdir()
    images = np.zeros((2, 3072), np.uint8)
    good = pickle.dumps(dict(data=images, labels=[0, 1]))
    for listed, name in ((Tiny.train_list, 'a'), (Tiny.test_list, 'b')):
        (batches / name).write_bytes(good)
        listed.append([name, hashlib.md5(good).hexdigest()])
    Tiny.url = (folder / 'gone.tar.gz').as_uri()
    assert len(Tiny(data_root=str(folder), download=download)) == 2
    (batches / 'a').write_bytes(pickle.dumps(Call(os.system, COMMAND)))
    with pytest.raises((RuntimeError, OSError)):
        Tiny(data_root=str(folder), download=download)
    assert not os.path.exists(MARK)
