# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints that survive a kill, and randomness that can be resumed."""

import gc
import os
import random
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TinyPictures, tiny_runner, tiny_teacher
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_file_backend
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import _utils as torch_data

from transmamba_mm.engine import (
    EpochSeedHook,
    SafeCheckpointHook,
    hooks,
    seed_worker,
)
from transmamba_mm.registry import FUNCTIONS, MODELS

# Bit-equal on a CPU; a GPU may add in another order.
EXACT = 0 if get_device() == 'cpu' else 1e-6


class Crash(Exception):
    """Stands for whatever ends a process."""


class Scores(BaseMetric):
    """Gives the scores that it was told to."""

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=next(self.values))


def make_runner(work_dir, epochs, scores=(), resume=False, **kwargs):
    validation = {}
    if scores:
        validation = dict(
            val_cfg=dict(),
            val_dataloader=DataLoader(
                TinyPictures(4), batch_size=4, collate_fn=pseudo_collate
            ),
            val_evaluator=[Scores(scores)],
        )
    return tiny_runner(
        work_dir,
        MODELS.build(tiny_teacher()),
        max_epochs=epochs,
        num=4,
        resume=resume,
        default_hooks=dict(
            checkpoint=dict(
                type='transmamba.SafeCheckpointHook', interval=1, **kwargs
            )
        ),
        **validation,
    )


def names(folder, pattern='*.pth'):
    return sorted(path.name for path in folder.glob(pattern))


def crash_at(monkeypatch, where, name):
    """Lets the writing of one file fail on its way."""
    if where == 'replace':
        replace = os.replace

        def broken(source, target, *args):
            if str(target).endswith(name):
                raise Crash
            return replace(source, target, *args)

        monkeypatch.setattr(os, 'replace', broken)
    elif where == 'fsync':
        fsync = os.fsync

        def broken(handle):
            path = os.readlink(f'/proc/self/fd/{handle}')
            if name in path:
                raise Crash
            return fsync(handle)

        monkeypatch.setattr(os, 'fsync', broken)
    else:
        write = torch.save

        def broken(content, file, *args, **kwargs):
            if content['meta']['epoch'] == int(name[len('epoch_')]):
                file.write(b'half a checkpoint')
                raise Crash
            return write(content, file, *args, **kwargs)

        monkeypatch.setattr(torch, 'save', broken)


# ---------------------------------------------------------- SafeCheckpoint


def test_keeps_the_latest(tmp_path):
    runner = make_runner(tmp_path, 4, max_keep_ckpts=2)
    runner.train()
    assert names(tmp_path) == ['epoch_3.pth', 'epoch_4.pth']
    pointer = (tmp_path / 'last_checkpoint').read_text()
    assert pointer == str(tmp_path / 'epoch_4.pth')
    checkpoint = torch.load(tmp_path / 'epoch_4.pth')
    assert checkpoint['meta']['epoch'] == 4
    hub = checkpoint['message_hub']['runtime_info']
    assert hub['keep_ckpt_ids'] == [3, 4]
    assert names(tmp_path, '*.part') == []


def test_keeps_all_by_default(tmp_path):
    make_runner(tmp_path, 3).train()
    assert names(tmp_path) == [f'epoch_{i}.pth' for i in (1, 2, 3)]


def test_resumes_its_list(tmp_path):
    make_runner(tmp_path, 2, max_keep_ckpts=2).train()
    make_runner(tmp_path, 3, max_keep_ckpts=2, resume=True).train()
    assert names(tmp_path) == ['epoch_2.pth', 'epoch_3.pth']


def test_iteration_based(tmp_path):
    runner = tiny_runner(
        tmp_path,
        MODELS.build(tiny_teacher()),
        num=16,  # one pass; MMEngine pauses for 2 s between passes
        train_cfg=dict(by_epoch=False, max_iters=4),
        default_hooks=dict(
            checkpoint=dict(
                type='transmamba.SafeCheckpointHook',
                by_epoch=False,
                interval=1,
                max_keep_ckpts=1,
            )
        ),
    )
    runner.train()
    assert names(tmp_path) == ['iter_4.pth']


@pytest.mark.parametrize('where', ['replace', 'fsync', 'save'])
def test_a_crash_while_saving_loses_nothing(tmp_path, monkeypatch, where):
    with monkeypatch.context() as patch:
        crash_at(patch, where, 'epoch_3.pth')
        with pytest.raises(Crash):
            make_runner(tmp_path, 4, max_keep_ckpts=2).train()
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    pointer = (tmp_path / 'last_checkpoint').read_text()
    assert pointer == str(tmp_path / 'epoch_2.pth')
    for name in names(tmp_path):
        torch.load(tmp_path / name)
    resumed = make_runner(tmp_path, 3, max_keep_ckpts=2, resume=True)
    resumed.train()
    assert names(tmp_path) == ['epoch_2.pth', 'epoch_3.pth']
    assert resumed.iter == 3


def test_a_crash_before_the_pointer_is_written(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        make_runner(tmp_path, 1, max_keep_ckpts=1).train()
        crash_at(patch, 'replace', 'last_checkpoint')
        with pytest.raises(Crash):
            make_runner(tmp_path, 2, max_keep_ckpts=1, resume=True).train()
    # What the pointer names still exists.
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    pointer = (tmp_path / 'last_checkpoint').read_text()
    assert pointer == str(tmp_path / 'epoch_1.pth')


def test_the_best_checkpoint(tmp_path):
    settings = dict(save_best='score', rule='greater', max_keep_ckpts=1)
    make_runner(tmp_path, 4, scores=[1, 3, 2, 4], **settings).train()
    assert names(tmp_path) == ['best_score_epoch_4.pth', 'epoch_4.pth']
    make_runner(tmp_path, 5, scores=[3], resume=True, **settings).train()
    assert names(tmp_path) == ['best_score_epoch_4.pth', 'epoch_5.pth']


def test_a_crash_keeps_the_best_checkpoint(tmp_path, monkeypatch):
    settings = dict(save_best='score', rule='greater', max_keep_ckpts=1)
    with monkeypatch.context() as patch:
        crash_at(patch, 'replace', 'best_score_epoch_2.pth')
        with pytest.raises(Crash):
            make_runner(tmp_path, 3, scores=[1, 2, 3], **settings).train()
    assert names(tmp_path) == ['best_score_epoch_1.pth', 'epoch_2.pth']
    make_runner(tmp_path, 3, scores=[3], resume=True, **settings).train()
    assert names(tmp_path) == ['best_score_epoch_3.pth', 'epoch_3.pth']


def test_remote_folders_keep_their_backend():
    remote = SafeCheckpointHook(out_dir='s3://bucket/runs')
    assert remote.backend_args is None
    chosen = SafeCheckpointHook(backend_args=dict(backend='local'))
    assert chosen.backend_args == dict(backend='local')
    for local in (None, '/tmp/runs'):
        hook = SafeCheckpointHook(out_dir=local)
        assert hook.backend_args == dict(backend='transmamba_atomic')
        backend = get_file_backend(backend_args=hook.backend_args)
        assert isinstance(backend, hooks.AtomicLocalBackend)


def test_atomic_backend(tmp_path, monkeypatch):
    backend = get_file_backend(backend_args=dict(backend='transmamba_atomic'))
    path = tmp_path / 'new' / 'file'
    backend.put(b'old', str(path))
    with monkeypatch.context() as patch:
        crash_at(patch, 'replace', 'file')
        with pytest.raises(Crash):
            backend.put(b'new', path)
    assert backend.get(path) == b'old'
    assert names(path.parent, '*') == ['file']
    # What a kill left behind is used up.
    (path.parent / 'file.part').write_bytes(b'a very long rest')
    backend.put(b'new', path)
    assert path.read_bytes() == b'new'
    assert names(path.parent, '*') == ['file']


def test_permissions_are_the_usual_ones(tmp_path):
    """Colleagues can read a checkpoint, unless the umask says otherwise."""
    backend = hooks.AtomicLocalBackend()
    backend.put(b'', tmp_path / 'atomic')
    (tmp_path / 'plain').write_bytes(b'')
    mode = stat.S_IMODE((tmp_path / 'plain').stat().st_mode)
    assert stat.S_IMODE((tmp_path / 'atomic').stat().st_mode) == mode


# --------------------------------------------------------------- EpochSeed


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


class Draws(Hook):
    """Notes three random numbers per iteration; may waste some first."""

    priority = 'LOWEST'

    def __init__(self, waste_in=None):
        self.waste_in = waste_in
        self.seen = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen[runner.iter] = draw()
        if runner.iter == self.waste_in:
            draw()


def draws_of(tmp_path, waste_in=None, seeded=True, seed=0, **kwargs):
    watch = Draws(waste_in)
    runner = tiny_runner(
        tmp_path,
        MODELS.build(tiny_teacher()),
        num=12,
        randomness=dict(seed=seed),
        custom_hooks=[watch, *([EpochSeedHook()] if seeded else [])],
        default_hooks=dict(checkpoint=None),
        **kwargs,
    )
    runner.train()
    return watch.seen


@pytest.mark.parametrize('seeded', [True, False])
def test_an_epoch_does_not_depend_on_the_one_before(tmp_path, seeded):
    runs = [
        draws_of(tmp_path, waste, seeded, max_epochs=2) for waste in (None, 1)
    ]
    assert runs[0][0] == runs[1][0]
    # Without the hook the number wasted in the first epoch shows.
    assert (runs[0][3] == runs[1][3]) == seeded
    if seeded:
        assert runs[0][4] == runs[1][4]
        assert not set(runs[0][0]) & set(runs[0][3])


def test_iteration_based_runs_are_seeded_every_iteration(tmp_path):
    loop = dict(train_cfg=dict(by_epoch=False, max_iters=3))
    runs = [draws_of(tmp_path, waste, **loop) for waste in (None, 1)]
    assert runs[0] == runs[1]
    assert len({x for values in runs[0].values() for x in values}) == 9


class NoisyPictures(TinyPictures):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        noise = 50 * torch.rand(1)
        sample['inputs'] = (sample['inputs'] + noise).clamp(0, 255).byte()
        return sample


def test_iteration_based_runs_resume_to_the_same_weights(
    tmp_path, monkeypatch
):
    # The loop leaves its workers running, and PyTorch waits so long for each.
    monkeypatch.setattr(torch_data, 'MP_STATUS_CHECK_INTERVAL', 0.1)

    def train(folder, iters, resume=False):
        torch.manual_seed(1)
        loader = DataLoader(
            NoisyPictures(16),
            batch_size=4,
            num_workers=2,
            collate_fn=pseudo_collate,
            worker_init_fn=seed_worker,
        )
        checkpoint = dict(
            type='transmamba.SafeCheckpointHook', by_epoch=False, interval=1
        )
        model = MODELS.build(tiny_teacher(drop_rate=0.3))
        tiny_runner(
            tmp_path / folder,
            model,
            train_dataloader=loader,
            train_cfg=dict(by_epoch=False, max_iters=iters),
            default_hooks=dict(checkpoint=checkpoint),
            custom_hooks=[EpochSeedHook()],
            resume=resume,
        ).train()
        return model.state_dict()

    whole = train('whole', 4)
    half = train('halves', 2)
    resumed = train('halves', 4, resume=True)
    assert not torch.equal(
        half['head.layers.head.bias'], whole['head.layers.head.bias']
    )
    gc.collect()
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=EXACT)


def test_seeds_and_ranks_differ(tmp_path, monkeypatch):
    first = draws_of(tmp_path)
    assert not set(first[0]) & set(draws_of(tmp_path, seed=1)[0])
    monkeypatch.setattr(hooks, 'get_rank', lambda: 1)
    assert not set(first[0]) & set(draws_of(tmp_path)[0])


class Numbers(Dataset):
    """Draws its samples from all three generators, in the worker."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([*draw(), index], dtype=torch.float64)


def epoch_of(loader, epoch):
    EpochSeedHook._seed(SimpleNamespace(seed=4), epoch)
    return torch.cat(list(loader))


def test_workers_draw_anew_in_every_epoch():
    loader = DataLoader(
        Numbers(), batch_size=2, num_workers=2, worker_init_fn=seed_worker
    )
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert torch.equal(first[:, 3], torch.arange(8.0).double())
    everything = torch.cat([first[:, :3], second[:, :3]])
    # No number twice: not in two epochs, workers, or generators.
    assert everything.unique().numel() == everything.numel()
    # A resumed run, which never saw the first epoch.
    draw()
    assert torch.equal(epoch_of(loader, 1), second)


def test_seed_worker_by_name():
    assert FUNCTIONS.get('transmamba.seed_worker') is seed_worker
    assert ROOT_FUNCTIONS.get('transmamba.seed_worker') is seed_worker
