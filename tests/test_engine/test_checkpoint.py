# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints that survive a kill, and that are worth being kept."""

import os
import stat

import pytest
import torch
from helpers import TinyPictures, tiny_runner, tiny_teacher
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_file_backend
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from transmamba_mm.engine import NonFiniteError, SafeCheckpointHook
from transmamba_mm.engine.checkpoint import AtomicLocalBackend
from transmamba_mm.engine.finite import non_finite
from transmamba_mm.registry import MODELS


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


def make_runner(
    work_dir,
    epochs,
    scores=(),
    resume=False,
    model=None,
    optimizer=None,
    **kwargs,
):
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
        model or MODELS.build(tiny_teacher()),
        max_epochs=epochs,
        num=4,
        resume=resume,
        optim_wrapper=dict(optimizer=optimizer or dict(type='SGD', lr=0.05)),
        default_hooks=dict(
            checkpoint=dict(
                type='transmamba.SafeCheckpointHook',
                **{'interval': 1, **kwargs},
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
    make_runner(tmp_path, 3, scores=[2, 3], resume=True, **settings).train()
    assert names(tmp_path) == ['best_score_epoch_3.pth', 'epoch_3.pth']


class Evaluations(Hook):
    """Notes after which epochs a run was evaluated, may crash before."""

    def __init__(self, crash_at=None):
        self.crash_at = crash_at
        self.seen = []

    def before_val_epoch(self, runner):
        if runner.epoch == self.crash_at:
            raise Crash
        self.seen.append(runner.epoch)


@pytest.mark.parametrize('interval', [1, 2])
@pytest.mark.parametrize('last', [2, 4], ids=['in between', 'the last'])
def test_what_a_crash_kept_from_evaluation_is_evaluated(
    tmp_path, interval, last
):
    settings = dict(
        save_best='score', rule='greater', max_keep_ckpts=1, interval=interval
    )
    scores = {1: 1, 2: 4, 3: 3, 4: 5}
    crashed = make_runner(tmp_path, 4, scores.values(), **settings)
    crashed.register_hook(Evaluations(crash_at=last))
    with pytest.raises(Crash):
        crashed.train()
    assert (tmp_path / f'epoch_{last}.pth').exists()
    rest = [scores[epoch] for epoch in range(last, 5)]
    resumed = make_runner(tmp_path, 4, rest, resume=True, **settings)
    watch = Evaluations()
    resumed.register_hook(watch)
    resumed.train()
    assert watch.seen == list(range(last, 5))
    assert names(tmp_path) == ['best_score_epoch_4.pth', 'epoch_4.pth']
    # As in a run without a crash, the last checkpoint knows the best one.
    hub = torch.load(tmp_path / 'epoch_4.pth')['message_hub']['runtime_info']
    assert hub['best_ckpt'].endswith('best_score_epoch_4.pth')
    assert hub['best_score'] == 5


@pytest.mark.parametrize('scores', [[1, 2], [2, 1]], ids=['better', 'worse'])
def test_a_finished_evaluation_is_repeated_if_its_state_is_lost(
    tmp_path, scores
):
    settings = dict(save_best='score', rule='greater')
    make_runner(tmp_path, 2, scores, **settings).train()
    resumed = make_runner(tmp_path, 2, scores[1:], resume=True, **settings)
    watch = Evaluations()
    resumed.register_hook(watch)
    resumed.train()
    # The better one is in the checkpoint, written anew after it.
    assert watch.seen == ([] if scores == [1, 2] else [2])


def test_leftovers_of_a_kill_are_swept(tmp_path, monkeypatch):
    settings = dict(save_best='score', rule='greater', max_keep_ckpts=1)
    with monkeypatch.context() as patch:
        # Killed when all is written, and nothing removed yet.
        patch.setattr(SafeCheckpointHook, '_purge', lambda self: None)
        make_runner(tmp_path, 2, [1, 2], **settings).train()
    others = ['notes.pth', 'epoch_x.pth', 'data.part', 'my_best_1.pth.part']
    halves = ['epoch_7.pth.part', 'last_checkpoint.part']
    halves.append('best_score_epoch_9.pth.part')
    for name in others + halves:
        (tmp_path / name).write_bytes(b'')
    assert {'epoch_1.pth', 'best_score_epoch_1.pth'} <= set(names(tmp_path))
    make_runner(tmp_path, 2, [], resume=True, **settings).train()
    own = ['best_score_epoch_2.pth', 'epoch_2.pth', 'last_checkpoint']
    left = [p.name for p in tmp_path.iterdir() if p.suffix != '.py']
    left = [name for name in left if (tmp_path / name).is_file()]
    assert sorted(left) == sorted(others + own)


def test_only_own_names_are_swept(tmp_path):
    hook = SafeCheckpointHook(filename_tmpl='step-{:03d}.pth')
    hook.out_dir = str(tmp_path)
    assert hook._is_own('step-012.pth')
    assert hook._is_own('best_accuracy_top1_step-012.pth')
    for name in ('step-.pth', 'epoch_1.pth', '../step-1.pth', '/step-1.pth'):
        assert not hook._is_own(name)


class Poison(Hook):
    """Makes one number infinite before the third epoch."""

    priority = 'LOWEST'

    def __init__(self, what):
        self.what = what

    def before_train_epoch(self, runner):
        if runner.epoch == 2:
            tensors = dict(
                weight=runner.model.head.layers.head.weight.data,
                momentum=next(
                    iter(runner.optim_wrapper.optimizer.state.values()), {}
                ).get('momentum_buffer'),
            )
            tensors[self.what].view(-1)[0] = float('inf')


@pytest.mark.parametrize('what', ['weight', 'momentum'])
def test_what_is_not_finite_is_not_saved(tmp_path, what):
    """Nor is what is finite removed for it."""
    optimizer = dict(type='SGD', lr=0.0, momentum=0.9)
    runner = make_runner(tmp_path, 4, optimizer=optimizer, max_keep_ckpts=1)
    runner.register_hook(Poison(what))
    with pytest.raises(NonFiniteError, match='nothing is saved'):
        runner.train()
    assert names(tmp_path) == ['epoch_2.pth']
    assert not list(non_finite(torch.load(tmp_path / 'epoch_2.pth')))


def test_masks_may_be_infinite(tmp_path):
    model = MODELS.build(tiny_teacher())
    model.register_buffer('mask', torch.tensor([0.0, -torch.inf]))
    make_runner(tmp_path, 1, model=model).train()
    assert names(tmp_path) == ['epoch_1.pth']


def test_remote_folders_keep_their_backend():
    remote = SafeCheckpointHook(out_dir='s3://bucket/runs')
    assert remote.backend_args is None
    chosen = SafeCheckpointHook(backend_args=dict(backend='local'))
    assert chosen.backend_args == dict(backend='local')
    for local in (None, '/tmp/runs'):
        hook = SafeCheckpointHook(out_dir=local)
        assert hook.backend_args == dict(backend='transmamba_atomic')
        backend = get_file_backend(backend_args=hook.backend_args)
        assert isinstance(backend, AtomicLocalBackend)


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
    backend = AtomicLocalBackend()
    backend.put(b'', tmp_path / 'atomic')
    (tmp_path / 'plain').write_bytes(b'')
    mode = stat.S_IMODE((tmp_path / 'plain').stat().st_mode)
    assert stat.S_IMODE((tmp_path / 'atomic').stat().st_mode) == mode


@pytest.mark.parametrize(
    ('key', 'rule'),
    [
        ('t2v/R@1', 'greater'),
        ('v2t_dual_softmax/R@10', 'greater'),
        ('t2v/MdR', 'less'),
        ('v2t/MnR', 'less'),
        ('accuracy/top1', 'greater'),
    ],
)
def test_which_results_are_better_is_known(key, rule):
    assert SafeCheckpointHook(save_best=key).rules == [rule]
