# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import builtins
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from transmamba_mm.compat.checkpoints import (
    _History,
    _method_name,
    allow_mmengine_checkpoints,
)
from transmamba_mm.compat.environment import version_tuple

pytestmark = pytest.mark.skipif(
    version_tuple(torch.__version__) < (2, 6),
    reason='this torch does not restrict pickles by default',
)


@pytest.fixture(autouse=True)
def allowed():
    allow_mmengine_checkpoints()


class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        out = self.linear(torch.stack(inputs))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


def build_runner(work_dir, epochs, **kwargs):
    return Runner(
        model=ToyModel(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(3)) for _ in range(4)],
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
            batch_size=2,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1)),
        param_scheduler=dict(type='LinearLR', end=4, by_epoch=True),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=f'{work_dir.name}_{epochs}',
        **kwargs,
    )


def test_runner_checkpoint_loads_and_resumes(tmp_path):
    build_runner(tmp_path, 2).train()
    path = str(tmp_path / 'epoch_2.pth')
    content = torch.load(path, weights_only=True)
    scalars = content['message_hub']['log_scalars']
    assert isinstance(scalars['train/loss'], HistoryBuffer)
    assert scalars['train/loss'].statistics('min') >= 0

    runner = build_runner(tmp_path, 3, resume=True, load_from=path)
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 6)
    steps = runner.optim_wrapper.optimizer.state_dict()['state'][0]['step']
    assert steps == 6


@pytest.mark.parametrize('renamed', [False, True])
def test_numpy_content_of_either_numpy(tmp_path, renamed):
    content = dict(
        array=np.arange(3.0),
        flags=np.array([True]),
        names=np.array(['a', 'bc']),
        scalar=np.float32(2.5),
    )
    path = tmp_path / 'a.pth'
    torch.save(content, path)
    if renamed:
        path = rename_numpy_core(path)
    loaded = torch.load(path, weights_only=True)
    assert loaded['array'].tolist() == [0, 1, 2]
    assert loaded['flags'].tolist() == [True]
    assert loaded['names'].tolist() == ['a', 'bc']
    assert loaded['scalar'] == 2.5


def rename_numpy_core(path):
    """Return the file as the other major version of numpy writes it."""
    names = [b'numpy._core.multiarray', b'numpy.core.multiarray']
    other = path.with_name('renamed.pth')
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, 'w') as new:
        for item in old.namelist():
            data = old.read(item)
            if item.endswith('data.pkl'):
                ours, theirs = names if names[0] in data else names[::-1]
                assert ours in data
                data = data.replace(ours, theirs)
            new.writestr(item, data)
    return other


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'attack',
    [
        Call(os.system, 'true'),
        Call(eval, '1'),
        Call(builtins.getattr, os, 'system'),
        Call(builtins.getattr, HistoryBuffer, '__init__'),
        Call(builtins.getattr, HistoryBuffer, '__setstate__'),
        Call(builtins.getattr, np.ndarray, 'tofile'),
        Call(builtins.getattr, HistoryBuffer, 'register_statistics'),
        Call(__import__, 'os'),
    ],
    ids=lambda attack: f'{attack.call[0].__name__}-{attack.call[1]}'[:40],
)
def test_malicious_pickles_are_still_refused(tmp_path, attack):
    path = tmp_path / 'evil.pth'
    if attack.call[1][0] is os:
        attack.call = (attack.call[0], (HistoryBuffer, '__globals__'))
    torch.save(dict(state_dict={}, payload=attack), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_getattr_stays_getattr_outside():
    assert _method_name(_History, 'mean') == 'mean'
    with pytest.raises(pickle.UnpicklingError, match='system'):
        _method_name(os, 'system')
    with pytest.raises(pickle.UnpicklingError):
        _method_name(HistoryBuffer(), 'mean')
    assert getattr(os, 'sep') == '/'  # noqa: B009
