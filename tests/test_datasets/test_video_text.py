# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Videos with captions: annotations, files, samples, and broken ones."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from helpers import tiny_runner
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.model import BaseModel
from mmpretrain.models import VideoDataPreprocessor
from video_cases import (
    BROKEN,
    coded_frame,
    copy_of,
    make_broken,
    number_of,
    write,
)

from transmamba_mm.apis.verify import find_unreadable_samples
from transmamba_mm.datasets import VideoTextDataset
from transmamba_mm.datasets.inspect import check_trained, check_videos
from transmamba_mm.datasets.transforms import UnreadableVideoError
from transmamba_mm.datasets.video_files import match_videos, read_captions
from transmamba_mm.engine import PreCheckHook
from transmamba_mm.registry import DATASETS, TOKENIZER
from transmamba_mm.utils.mistakes import UsageError, train

CAPTIONS = {
    'a.mp4': ['one', 'two words'],
    'b.mp4': ['three more words'],
    'c.mp4': ['four', 'five', 'six'],
}
LIST = [
    dict(video='a.mp4', caption='one'),
    dict(video='b.mp4', caption=['three more words']),
    dict(video='a.mp4', caption='two words'),
    dict(video='c.mp4', caption=['four', 'five', 'six']),
]


class Letters:
    """A stand-in for a tokenizer: 1, the length of each word, 2."""

    def __call__(self, text, max_words):
        return [1, *map(len, text.split()[: max_words - 2]), 2]


@pytest.fixture(autouse=True, scope='module')
def _tokenizer():
    TOKENIZER.register_module(name='Letters', module=Letters, force=True)
    yield
    TOKENIZER._module_dict.pop('Letters')


PIPELINE = [
    dict(type='transmamba.LoadVideo', max_frames=4, fps=2),
    dict(
        type='transmamba.EachFrame',
        transforms=[
            dict(
                type='ResizeEdge',
                scale=24,
                edge='short',
                backend='pillow',
                interpolation='bicubic',
            ),
            dict(type='CenterCrop', crop_size=24),
        ],
    ),
    dict(
        type='transmamba.TokenizeText',
        tokenizer=dict(type='transmamba.Letters'),
        max_words=4,
    ),
    dict(type='transmamba.PackVideoText'),
]


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clip')
    return write(folder / 'clip.mp4', num=12, codec='mpeg4')


@pytest.fixture
def root(tmp_path, clip):
    (tmp_path / 'videos').mkdir()
    for name in CAPTIONS:
        copy_of(clip, tmp_path / 'videos' / name)
    (tmp_path / 'ann.json').write_text(json.dumps(CAPTIONS))
    return tmp_path


def config(root, ann='ann.json', pipeline=PIPELINE, **kwargs):
    return dict(
        type='transmamba.VideoTextDataset',
        data_root=str(root),
        ann_file=ann,
        data_prefix=dict(video='videos'),
        pipeline=pipeline,
        **kwargs,
    )


def make(*args, **kwargs):
    return DATASETS.build(dict(config(*args, **kwargs), _scope_='mmpretrain'))


# -------------------------------------------------------------- annotations


@pytest.mark.parametrize('content', [CAPTIONS, LIST])
def test_both_formats(root, content):
    (root / 'ann.json').write_text(json.dumps(content))
    assert read_captions(root / 'ann.json') == CAPTIONS
    joined = read_captions(root / 'ann.json', paragraph=True)
    assert joined['c.mp4'] == ['four five six']
    dataset = make(root, paragraph=True, captions='all', pipeline=[])
    assert dataset[2]['texts'] == ['four five six']


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', r"ann\.json' is no JSON to use"),
        ('5', r"ann\.json' holds no videos: it must be"),
        ('{}', 'holds no videos'),
        ('{"a.mp4": ["x"], "a.mp4": ["y"]}', "'a.mp4' is in it twice"),
        ('{"a.mp4": []}', "'a.mp4' has no caption"),
        ('{"a.mp4": null}', "'a.mp4' has no caption"),
        ('{"a.mp4": ["x", " "]}', "'a.mp4' has the caption ' '"),
        ('{"a.mp4": ["x", 3]}', "'a.mp4' has the caption 3"),
        ('[{"video": "a.mp4"}]', "entry 0 has no 'video' and 'caption'"),
        ('[{"video": 3, "caption": "x"}]', 'entry 0 has the video 3'),
    ],
)
def test_annotations_that_cannot_be_used(root, content, message):
    (root / 'ann.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        make(root)


def test_files_or_folders_that_are_not_there(root):
    with pytest.raises(FileNotFoundError, match=r'gone\.json'):
        make(root, 'gone.json')
    (root / 'videos').rename(root / 'elsewhere')
    with pytest.raises(NotADirectoryError, match=r"no folder '.*videos'"):
        make(root)


def test_files_are_matched_by_name_then_by_stem(tmp_path):
    for name in ('a.mov', 'b.mp4', 'c.mpg.mp4', 'd.e', 'f.txt', 'sub/g.avi'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / 'frames').mkdir()
    wanted = {
        'a.mov': 'a.mov',
        'a.mp4': 'a.mov',
        'b': 'b.mp4',
        'c.mpg': 'c.mpg.mp4',
        'd.e': 'd.e',
        'f.mp4': None,
        'f.txt.mp4': None,
        'frames.mp4': 'frames',
        'sub/g.MTS': 'sub/g.avi',
        'gone': None,
    }
    found = match_videos(wanted, tmp_path)
    assert found == {
        name: path and os.path.join(tmp_path, path)
        for name, path in wanted.items()
    }
    (tmp_path / 'a.avi').touch()
    assert match_videos(['a.mov'], tmp_path)['a.mov'].endswith('a.mov')
    with pytest.raises(ValueError, match=r"a\.avi, a\.mov: .*'a\.mp4'"):
        match_videos(['a.mp4'], tmp_path)


# ------------------------------------------------------------------ samples


def test_captions(root):
    every = make(root, captions='each', pipeline=[])
    assert len(every) == 6
    assert [every[i]['texts'] for i in (0, 1)] == [['one'], ['two words']]
    test = make(root, test_mode=True, pipeline=[])
    assert len(test) == 3
    assert test[0]['texts'] == CAPTIONS['a.mp4']
    random = make(root, pipeline=[])
    np.random.seed(0)
    drawn = {random[2]['texts'][0] for _ in range(40)}
    assert drawn == set(CAPTIONS['c.mp4'])
    assert {len(random[0]['texts']) for _ in range(5)} == {1}


def test_a_packed_sample(root):
    sample = make(root, test_mode=True)[0]
    inputs, about = sample['inputs'], sample['data_samples']
    # 1.2 seconds, two frames a second: 0, 5, 10.
    assert inputs.shape == (3, 4, 24, 24)
    assert inputs.dtype == torch.uint8
    assert about.num_frames == 3
    assert inputs[:, 3].count_nonzero() == 0
    assert about.tokens.dtype == torch.long
    assert about.tokens.tolist() == [[1, 3, 2, 0], [1, 3, 5, 2]]
    assert about.texts == CAPTIONS['a.mp4']
    assert about.video_id == 'a.mp4'
    assert about.video_path.endswith('videos/a.mp4')
    preprocess = VideoDataPreprocessor(
        mean=[128] * 3, std=[64] * 3, format_shape='NCTHW'
    )
    batch = preprocess(default_collate([sample, make(root)[1]]), True)
    assert batch['inputs'].shape == (2, 3, 4, 24, 24)
    assert batch['data_samples'][1].tokens.tolist() == [[1, 5, 4, 2]]


def test_frames_of_the_sample_are_those_asked_for(root):
    pipeline = [PIPELINE[0], PIPELINE[2], PIPELINE[3]]
    inputs = make(root, test_mode=True, pipeline=pipeline)[0]['inputs']
    frames = inputs.permute(1, 2, 3, 0).numpy()
    assert [number_of(x) for x in frames] == [0, 5, 10, 0]


def test_a_clip_is_cropped_and_flipped_as_one(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    each = dict(
        type='transmamba.EachFrame',
        transforms=[
            dict(type='RandomResizedCrop', scale=24),
            dict(type='RandomFlip', prob=0.5),
            dict(type='ColorJitter', brightness=0.5, hue=0.2),
        ],
    )
    from transmamba_mm.registry import TRANSFORMS

    transform = TRANSFORMS.build(dict(each, _scope_='mmpretrain'))
    seen = set()
    for seed in range(5):
        np.random.seed(seed)
        frames = transform(dict(frames=[frame] * 3))['frames']
        assert frames[0].shape == (24, 24, 3)
        assert all((x == frames[0]).all() for x in frames)
        seen.add(frames[0].tobytes())
    assert len(seen) == 5


def test_frames_of_several_sizes_are_refused(root):
    from transmamba_mm.datasets.transforms import PackVideoText

    frames = [coded_frame(0), coded_frame(0)[:-2]]
    with pytest.raises(ValueError, match=r"'x\.mp4' differ in size"):
        PackVideoText()(dict(frames=frames, max_frames=2, video_path='x.mp4'))


def test_a_tokenizer_that_gives_too_much(root):
    class Chatty(Letters):
        def __call__(self, text, max_words):
            return [1] * 9

    TOKENIZER.register_module(name='Letters', module=Chatty, force=True)
    try:
        with pytest.raises(ValueError, match='Chatty gives 9 tokens for'):
            make(root)[0]
    finally:
        TOKENIZER.register_module(name='Letters', module=Letters, force=True)


@pytest.mark.parametrize('key', ['captions', 'on_error'])
def test_unknown_settings(root, key):
    with pytest.raises(ValueError, match=f"{key} must be '"):
        make(root, **{key: 'some'})


# ------------------------------------------------------------------- broken


@pytest.fixture(scope='module')
def broken_root(tmp_path_factory, clip):
    root = tmp_path_factory.mktemp('broken')
    (root / 'videos').mkdir()
    for name in BROKEN:
        make_broken(root / 'videos', name)
    for name in ('good.mp4', 'fine.mp4'):
        copy_of(clip, root / 'videos' / name)
    names = [*BROKEN, 'good.mp4', 'fine.mp4']
    (root / 'ann.json').write_text(json.dumps({x: [x] for x in names}))
    return root


def test_error_is_the_default(broken_root):
    dataset = make(broken_root)
    assert len(dataset) == len(BROKEN) + 2
    for index, name in enumerate(BROKEN):
        with pytest.raises(UnreadableVideoError, match=name):
            dataset[index]


def test_training_skips_what_is_broken(broken_root, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = make(broken_root, on_error='skip')
        # The two that there is no file of are left out at once.
        assert len(dataset) == len(BROKEN)
        for _ in range(2):
            for index in range(len(dataset)):
                about = dataset[index]['data_samples']
                assert about.video_id in ('good.mp4', 'fine.mp4')
                assert about.texts == [about.video_id]
    assert dataset.num_skipped == len(BROKEN) - 2


def test_workers_count_together(broken_root):
    loader = torch.utils.data.DataLoader(
        make(broken_root, on_error='skip'),
        batch_size=4,
        num_workers=2,
        collate_fn=default_collate,
    )
    assert sum(len(x['data_samples']) for x in loader) == len(BROKEN)
    assert loader.dataset.num_skipped == len(BROKEN) - 2


def test_the_evaluation_leaves_them_out_beforehand(broken_root):
    dataset = make(broken_root, on_error='skip', test_mode=True)
    assert len(dataset) == 2
    ids = [dataset[i]['data_samples'].video_id for i in range(2)]
    assert ids == ['good.mp4', 'fine.mp4']


def test_nothing_to_train_on(broken_root, tmp_path):
    ann = tmp_path / 'ann.json'
    ann.write_text(json.dumps({'text.mp4': ['x'], 'cut.mp4': ['y']}))
    dataset = make(broken_root, str(ann), on_error='skip')
    with pytest.raises(UnreadableVideoError, match='none of the 2 samples'):
        dataset[0]


def test_the_list_of_verify_dataset(broken_root, tmp_path):
    inner = config(broken_root, pipeline=PIPELINE[:1])
    cfg = Config(dict(train_dataloader=dict(dataset=inner)))
    bad, total = find_unreadable_samples(cfg, workers=1)
    assert total == len(BROKEN) + 2
    assert {os.path.basename(path) for path in bad} == set(BROKEN)
    listed = tmp_path / 'unreadable.txt'
    listed.write_text(''.join(f'{path}\n' for path in bad))
    clean = DATASETS.build(
        dict(
            type='transmamba.SkippingDataset',
            dataset=inner,
            listed=str(listed),
        )
    )
    assert len(clean) == 2


class Brightness(BaseModel):
    """Learns a number from clips."""

    def __init__(self):
        super().__init__(
            VideoDataPreprocessor(
                mean=[0.0] * 3, std=[255.0] * 3, format_shape='NCTHW'
            )
        )
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples, mode='tensor'):
        return dict(loss=(inputs.mean() * self.weight).square().sum())


@pytest.mark.parametrize('on_error', ['skip', 'error'])
def test_a_run(broken_root, tmp_path, on_error):
    loader = dict(
        batch_size=5,
        num_workers=2 if on_error == 'skip' else 0,
        dataset=config(broken_root, on_error=on_error),
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
    )
    runner = tiny_runner(
        tmp_path,
        Brightness(),
        train_dataloader=loader,
        custom_hooks=[PreCheckHook()],
    )
    if on_error == 'error':
        with pytest.raises(UsageError, match=r'lacks 2 of 20 videos: .*\.mp4'):
            train(runner)
        # Those that are there and broken end it when their turn comes.
        ann = tmp_path / 'ann.json'
        names = sorted(set(BROKEN) - {'missing.mp4', 'dangling.mp4'})
        ann.write_text(json.dumps({x: [x] for x in names}))
        loader['dataset'] = config(broken_root, str(ann))
        runner = tiny_runner(tmp_path, Brightness(), train_dataloader=loader)
        with pytest.raises(UsageError, match=r"video '.*' cannot be read"):
            train(runner)
    else:
        train(runner)
        assert runner.iter == 4
        dataset = runner.train_dataloader.dataset
        assert dataset.num_skipped == len(BROKEN) - 2


def test_missing_videos_are_told_before_a_run(root):
    dataset = make(root)
    check_videos(dict(train_dataloader=dataset))
    (root / 'videos/b.mp4').unlink()
    message = r'lacks 1 of 3 videos: .*b\.mp4.*--allow-missing'
    with pytest.raises(ValueError, match=message):
        check_videos(dict(train_dataloader=make(root)))
    with pytest.raises(UnreadableVideoError, match='there is no such file'):
        make(root)[1]
    check_videos(dict(train_dataloader=make(root, on_error='skip')))


def test_clips_made_otherwise_are_refused(root):
    raw = make(root)
    assert raw.metainfo['clips'] is None
    note = root / 'videos/clips.json'
    note.write_text('{"fps": 3, "short_side": 224}')
    clips = make(root)
    assert clips.metainfo['clips'] == dict(fps=3, short_side=224)
    check_videos(dict(train_dataloader=clips, val_dataloader=make(root)))
    message = 'as they came and fps=3 short_side=224'
    with pytest.raises(ValueError, match=message):
        check_videos(dict(train_dataloader=clips, val_dataloader=raw))
    check_trained(clips.metainfo, clips)
    with pytest.raises(ValueError, match='videos of the test'):
        check_trained(clips.metainfo, raw)


def test_a_share_of_it(root):
    half = DATASETS.build(
        dict(
            type='transmamba.FractionDataset',
            fraction=0.67,
            dataset=config(root, pipeline=[]),
        )
    )
    assert isinstance(half, VideoTextDataset)
    assert len(half) == 2
