# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Training with a teacher that runs once for each image."""

import contextlib
import copy
import multiprocessing
import shutil
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from helpers import (
    pmamba_cfg,
    save_teacher,
    snapshot,
    tiny_runner,
    vit_cfg,
)
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.structures import BaseDataElement
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample
from test_teacher_branch import SIZED, method, of, resnet

from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.teacher_cache import TeacherCache

METHODS = method('HiddenStates'), method('LogitsKD')
TEACHER = vit_cfg(depth=3, classes=10)
NORMALISED = dict(mean=[78.0] * 3, std=[96.0] * 3)


@DATASETS.register_module()
class CachedPictures(BaseDataset):
    """Random pictures of 16 pixels."""

    def load_data_list(self):
        numbers = np.random.default_rng(0)
        return [
            dict(
                img=numbers.integers(256, size=(16, 16, 3), dtype=np.uint8),
                gt_label=i % 10,
            )
            for i in range(32)
        ]

    def __init__(self, **kwargs):
        # Serialising collects all garbage, which takes a second.
        super().__init__(serialize_data=False, **kwargs)


class Watch(Hook):
    """Counts the images that go through the teacher, notes the losses."""

    priority = 'VERY_LOW'

    def __init__(self, stop_at=None):
        self.losses, self.images, self.stop_at = [], 0, stop_at

    def before_run(self, runner):
        for teacher in runner.model.branch.teachers.values():
            teacher.backbone.register_forward_pre_hook(self._count)

    def _count(self, module, inputs):
        self.images += len(inputs[0])

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses.append({k: v.item() for k, v in outputs.items()})
        if runner.iter + 1 == self.stop_at:
            raise KeyboardInterrupt


def dataset(num=16, num_views=2, padding=2, **kwargs):
    pipeline = [
        dict(type='RandomCrop', crop_size=16, padding=padding),
        dict(type='PackInputs'),
    ]
    inner = dict(type='CachedPictures', pipeline=pipeline, indices=num)
    return dict(
        type='transmamba.SeededAugment',
        dataset=inner,
        num_views=num_views,
        **kwargs,
    )


Run = namedtuple('Run', 'losses images state runner')


@pytest.fixture(scope='module')
def ckpt(tmp_path_factory):
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    return save_teacher(path, TEACHER)


@pytest.fixture
def train(tmp_path, ckpt):
    """Trains a student; with a cache in a folder of that name, if any."""

    def run(
        cache=None,
        methods=METHODS,
        epochs=2,
        data=None,
        batch=4,
        teacher=TEACHER,
        teacher_ckpt=ckpt,
        student=None,
        stop_at=None,
        hook=None,
        work_dir=None,
        **kwargs,
    ):
        torch.manual_seed(0)
        model = TransMambaDistill(
            {
                **pmamba_cfg(depth=2, classes=10),
                'data_preprocessor': dict(NORMALISED),
                **(student or {}),
            },
            teacher,
            of(*methods),
            teacher_ckpt,
        )
        watch = Watch(stop_at)
        hooks = [dict(type='transmamba.DistillMonitor'), watch]
        if cache:
            kind = dict(type='transmamba.TeacherCacheHook', interval=2)
            hooks.append(
                dict(kind, folder=str(tmp_path / cache), **hook or {})
            )
        settings = dict(
            train_dataloader=dict(
                dataset=data or dataset(),
                batch_size=batch,
                num_workers=0,
                persistent_workers=False,
                sampler=dict(type='DefaultSampler', shuffle=True),
            ),
            max_epochs=epochs,
            log_level='ERROR',
            custom_hooks=hooks,
            default_hooks=dict(
                checkpoint=dict(
                    type='transmamba.SafeCheckpointHook', interval=1
                ),
                epoch_seed=dict(type='transmamba.EpochSeedHook'),
                schedule=dict(type='transmamba.DistillScheduleHook'),
            ),
        )
        settings.update(kwargs)
        runner = tiny_runner(work_dir or tmp_path / 'run', model, **settings)
        with contextlib.suppress(KeyboardInterrupt):
            runner.train()
        return Run(watch.losses, watch.images, snapshot(model), runner)

    run.folder = tmp_path
    return run


def assert_same(found, wanted):
    assert found.losses == wanted.losses
    for key, value in wanted.state.items():
        assert value.equal(found.state[key]), key


def test_losses_and_weights_are_those_without(train):
    """Bit by bit; a second run never runs the teacher."""
    plain = train()
    assert plain.images == 2 * 16
    first = train('cache')
    assert first.images == 2 * 16 + 1  # and one to see what is recorded
    assert_same(first, plain)
    second = train('cache')
    assert second.images == 0
    assert_same(second, plain)
    assert second.losses[0]['distill.loss_hidden'] > 0


def test_other_batches_and_later_epochs(train):
    """Equal up to rounding, which depends on who shares a batch."""
    train('cache', randomness=dict(seed=3))
    for batch in (4, 8):
        plain = train(epochs=5, batch=batch)
        cached = train('cache', epochs=5, batch=batch)
        assert cached.images == 0
        for mine, theirs in zip(cached.losses, plain.losses):
            assert mine == pytest.approx(theirs, rel=1e-5)


def test_views_are_filled_as_epochs_show_them(train):
    for epochs, images in ((1, 17), (2, 16), (5, 0)):
        assert train('cache', epochs=epochs).images == images
    assert train('cache', epochs=1, methods=METHODS[1:]).images == 0


def test_resumed_runs(train):
    """Stopped in the second epoch: it goes on as if nothing had been."""
    plain = train(epochs=3)
    work_dir = train.folder / 'stopped'
    first = train('cache', epochs=3, work_dir=work_dir, stop_at=6)
    assert len(first.losses) == 6
    rest = train('cache', epochs=3, work_dir=work_dir, resume=True)
    assert [*first.losses[:4], *rest.losses] == plain.losses
    assert rest.images == 8  # two batches of the second view
    for key, value in plain.state.items():
        assert value.equal(rest.state[key]), key


def test_a_method_may_set_in_late(train):
    late = dict(METHODS[0], begin=0.5), METHODS[1]
    plain = train(methods=late)
    assert_same(train('cache', methods=late), plain)
    again = train('cache', methods=late)
    assert again.images == 0
    assert_same(again, plain)
    # Of the first view nobody has read hidden states but the monitor, which
    # looks at the first batch.
    assert train('cache').images == 12


@pytest.mark.parametrize(
    'kind',
    [
        'TokenRelations',
        'LastLayerHint',
        'MixerMatching',
        'AdaptiveBidirectional',
    ],
)
def test_other_records(train, kind):
    methods = (method(kind),)
    plain = train(methods=methods, epochs=1)
    train('cache', methods=methods, epochs=1)
    cached = train('cache', methods=methods, epochs=1)
    assert cached.images == 0
    assert_same(cached, plain)


def test_several_teachers_with_their_own_inputs(train):
    configs = dict(vit=TEACHER, cnn=resnet(classes=10))
    configs['cnn'] = dict(configs['cnn'], data_preprocessor=dict(SIZED))
    settings = dict(
        teacher=configs,
        teacher_ckpt={
            name: save_teacher(train.folder / f'{name}.pth', config)
            for name, config in configs.items()
        },
        methods=(
            method('HiddenStates', teacher='vit'),
            method('LogitsKD', teacher='cnn'),
        ),
    )
    plain = train(**settings)
    train('cache', **copy.deepcopy(settings))
    cached = train('cache', **copy.deepcopy(settings))
    assert cached.images == 0
    assert_same(cached, plain)


def test_half_precision_is_close_and_half_as_large(train):
    plain = train('full', epochs=1)
    half = train('half', epochs=1, hook=dict(dtype='float16'))
    again = train('half', epochs=1, hook=dict(dtype='float16'))
    assert again.images == 0 and again.losses != plain.losses
    assert_same(again, half)  # which has rounded as well
    for mine, theirs in zip(again.losses, plain.losses):
        assert mine == pytest.approx(theirs, rel=1e-2)
    sizes = [
        sum(
            x.stat().st_size
            for x in (train.folder / name).glob('*/records.bin')
        )
        for name in ('full', 'half')
    ]
    assert sizes[0] == 2 * sizes[1] == 32 * 4 * (10 + 3 * 17 * 16)


# ---------------------------------------------------------------- refusals


class Recorded:
    """What the cache knows of a recorder."""

    def __init__(self, value):
        self.data_buffer = [torch.full((2, 3), float(value))]

    def reset_data_buffer(self):
        self.data_buffer = []


def pictures(crc):
    return [
        BaseDataElement(
            metainfo=dict(sample_idx=i, augment_view=0, image_crc=crc + i)
        )
        for i in range(2)
    ]


def test_a_new_recorder_does_not_hide_that_images_changed(tmp_path):
    old, new = dict(a=Recorded(0)), dict(b=Recorded(1), a=Recorded(1))
    cache = TeacherCache(tmp_path, 2, 1)
    cache.create(old, dict(a={}))
    cache.keep(old, pictures(100))
    cache.flush()
    cache = TeacherCache(tmp_path, 2, 1)
    assert cache.open(dict(b={}, a={})) == ['b']
    cache.create(dict(b=new['b']), dict(b={}))
    with pytest.raises(ValueError, match='of another image'):
        cache.recall(new, pictures(200), torch.device('cpu'))
    # What is there is neither written nor vouched for again.
    cache.keep(new, pictures(200))
    cache.flush()
    assert cache.recall(old, pictures(100), torch.device('cpu'))
    assert old['a'].data_buffer[0].eq(0).all()


def test_what_half_precision_cannot_hold(tmp_path):
    recorder = dict(a=Recorded(1e5))
    cache = TeacherCache(tmp_path, 2, 1, 'float16')
    cache.create(recorder, dict(a={}))
    with pytest.raises(ValueError, match=r'100000, which float16 cannot'):
        cache.keep(recorder, pictures(100))


def test_what_is_stale_is_refused(train, tmp_path):
    train('cache', epochs=1)
    other = save_teacher(tmp_path / 'other.pth', TEACHER, seed=1)
    heads = copy.deepcopy(TEACHER)
    heads['backbone']['arch']['num_heads'] = 4
    sized = dict(TEACHER, data_preprocessor=dict(SIZED))
    normalised = dict(data_preprocessor=dict(NORMALISED, to_rgb=True))
    for changes, part in (
        (dict(teacher_ckpt=other), 'weights of the teacher'),
        (dict(teacher=heads), 'structure of the teacher'),
        (dict(teacher=sized), 'input of the teacher'),
        (dict(student=normalised), 'input of the teacher'),
        (dict(data=dataset(padding=1)), 'dataset'),
        (dict(data=dataset(seed=5)), 'dataset'),
        (dict(data=dataset(num=12)), 'dataset, samples and views'),
        (dict(data=dataset(num_views=3)), 'samples and views'),
        (dict(hook=dict(dtype='float16')), 'dtype'),
        (
            dict(optim_wrapper=dict(
                type='transmamba.CpuAmpOptimWrapper',
                dtype='bfloat16',
                optimizer=dict(type='SGD', lr=0.05),
            )),
            'precision',
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f'is stale.*{part}.*delete this'):
            train('cache', epochs=1, **changes)


def test_another_image_under_the_same_name_is_refused(train, monkeypatch):
    train('cache', epochs=1)
    load = CachedPictures.load_data_list

    def changed(self):
        found = load(self)
        found[3]['img'] = 255 - found[3]['img']
        return found

    monkeypatch.setattr(CachedPictures, 'load_data_list', changed)
    with pytest.raises(ValueError, match=r'row 3 .* of another image'):
        train('cache', epochs=1)


def test_no_room(train, monkeypatch):
    usage = shutil.disk_usage('.')._replace(free=9)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    width = 4 * (10 + 3 * 17 * 16)
    with pytest.raises(
        ValueError, match=f'{width:,} bytes per image.*16 samp'
    ):
        train('cache')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(
                student=dict(
                    train_cfg=dict(augments=dict(type='Mixup', alpha=0.8))
                )
            ),
            'mixup and cutmix',
        ),
        (dict(data=dataset()['dataset']), r"wrap .*'transmamba.SeededAug"),
        (dict(hook=dict(dtype='int8')), "None or 'float16'"),
    ],
)
def test_mistakes(train, changes, message):
    if 'student' in changes:
        changes['student']['data_preprocessor'] = dict(
            NORMALISED, num_classes=10
        )
    with pytest.raises(ValueError, match=message):
        train('cache', **changes)


# --------------------------------------------------- several processes, kills


class Recorder:
    """Gives a tensor of every row, made of its number."""

    def __init__(self):
        self.data_buffer = []

    def reset_data_buffer(self):
        self.data_buffer = []

    def run(self, rows):
        self.data_buffer = [torch.stack([self.of(row) for row in rows])]

    @staticmethod
    def of(row):
        return torch.full((5000,), float(row))


def open_cache(folder):
    cache, recorder = TeacherCache(str(folder), 400, 1), Recorder()
    with cache.lock():
        if cache.open(dict(x={})):
            recorder.run([0])
            cache.create(dict(x=recorder), dict(x={}))
    return cache, recorder


def samples_of(rows):
    return [
        DataSample(
            metainfo=dict(sample_idx=row, augment_view=0, image_crc=row + 7)
        )
        for row in rows
    ]


def fill(folder, seed):
    cache, recorder = open_cache(folder)
    order = np.random.default_rng(seed).permutation(400).tolist()
    for start in range(0, 400, 4):
        rows = order[start : start + 4]
        recorder.run(rows)
        cache.keep(dict(x=recorder), samples_of(rows))
        if start % 16 == 0:
            cache.flush()
    cache.flush()


def check(folder):
    """Everything that counts is right; returns how much that is."""
    cache, recorder = open_cache(folder)
    known = 0
    for row in range(400):
        if cache.recall(dict(x=recorder), samples_of([row]), 'cpu'):
            assert recorder.data_buffer[0].equal(Recorder.of(row)[None])
            known += 1
    return known


def test_processes_may_be_killed_at_any_moment(tmp_path):
    context = multiprocessing.get_context('fork')
    counts = []
    for seed in range(5):
        both = [
            context.Process(
                target=fill, args=(tmp_path / 'cache', 2 * seed + i)
            )
            for i in range(2)
        ]
        for process in both:
            process.start()
        time.sleep(0.02 * (1 + seed))
        for process in both:
            process.kill()
            process.join()
        counts.append(check(tmp_path / 'cache'))
    assert counts == sorted(counts)
    fill(tmp_path / 'cache', 0)
    assert check(tmp_path / 'cache') == 400
