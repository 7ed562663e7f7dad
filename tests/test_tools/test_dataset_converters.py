# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tools that make, check and re-encode data sets of videos."""

import csv
import hashlib
import json
import zipfile

import numpy as np
import pytest
from helpers import run_tool_here
from video_cases import make_broken, number_of, write

from transmamba_mm.datasets.toy_videos import (
    CAPTIONS,
    COLOURS,
    HELD_OUT,
    MOTIONS,
    Event,
    _stories,
    caption,
    make_toy_videos,
)
from transmamba_mm.datasets.transforms.video_decoding import open_video
from transmamba_mm.datasets.video_files import read_captions
from transmamba_mm.models.clip.tokenizer import CLIPTokenizer


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a tool; returns its last line and its exit status."""

    def run(tool, *args):
        status = 0
        try:
            run_tool_here(monkeypatch, f'dataset_converters/{tool}', *args)
        except SystemExit as end:
            status = end.code
        told = capsys.readouterr()
        if status and not told.out:
            assert told.err.count('error: ') == 1
            return told.err, status
        return json.loads(told.out.splitlines()[-1]), status

    return run


# ------------------------------------------------------------------ MSR-VTT


def sentences(*videos):
    return dict(
        videos=[dict(video_id=x) for x in videos],
        sentences=[
            dict(sen_id=i, video_id=x, caption=f'caption {i} of {x}')
            for x in videos
            for i in range(2)
        ],
    )


def write_csv(path, *rows):
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def msrvtt(tmp_path):
    root = tmp_path / 'msrvtt'
    (root / 'csv').mkdir(parents=True)
    write_csv(
        root / 'csv/MSRVTT_train.9k.csv',
        *(dict(video_id=f'video{i}') for i in range(3)),
    )
    write_csv(root / 'csv/MSRVTT_train.7k.csv', dict(video_id='video0'))
    write_csv(
        root / 'csv/MSRVTT_JSFUSION_test.csv',
        dict(key='ret0', video_id='video9', sentence='one, with a comma'),
    )
    return root


def test_msrvtt(msrvtt, tmp_path, run):
    with zipfile.ZipFile(msrvtt / 'a.zip', 'w') as archive:
        content = sentences('video0', 'video1', 'video2')
        archive.writestr('x/train_val_videodatainfo.json', json.dumps(content))
    (msrvtt / 'test_videodatainfo.json').write_text(
        json.dumps(sentences('video9'))
    )
    (tmp_path / 'videos/video2').mkdir(parents=True)
    (tmp_path / 'videos/video9.mp4').touch()
    out = tmp_path / 'out'
    counts, status = run(
        'msrvtt', msrvtt, '--out', out, '--videos', tmp_path / 'videos'
    )
    assert not status
    assert counts == dict(
        descriptions=9,
        videos=4,
        looked_for=4,
        missing=2,
        splits=dict(
            train_9k=dict(descriptions=6, videos=3),
            train_7k=dict(descriptions=2, videos=1),
            test_JSFUSION=dict(descriptions=1, videos=1),
        ),
    )
    made = json.loads((out / 'train_9k.json').read_text())
    assert made['video1.mp4'] == [f'caption {i} of video1' for i in range(2)]
    made = read_captions(out / 'test_JSFUSION.json')
    assert made == {'video9.mp4': ['one, with a comma']}


def test_msrvtt_that_is_not_whole(msrvtt, tmp_path, run):
    out = '--out', tmp_path / 'out'
    told, status = run('msrvtt', msrvtt, *out)
    assert status == 2 and 'holds no MSRVTT_data.json or' in told
    data = msrvtt / 'MSRVTT_data.json'
    data.write_text(json.dumps(sentences('video0', 'video1')))
    told, status = run('msrvtt', msrvtt, *out)
    assert status == 2 and 'video2 has no caption' in told
    data.write_text(json.dumps(sentences(*(f'video{i}' for i in range(3)))))
    write_csv(
        msrvtt / 'csv/MSRVTT_JSFUSION_test.csv',
        dict(video_id='video1', sentence='leaked'),
    )
    told, status = run('msrvtt', msrvtt, *out)
    assert status == 2 and "videos of the test: ['video1.mp4']" in told


# ------------------------------------------------------------------- DiDeMo

DIDEMO = [
    ('11@N00_1_a.mov', 'the dog runs'),
    ('22@N00_2_b', 'it is dark'),
    ('11@N00_1_a.mov', 'then it jumps'),
    ('33@N00_3_c.3gp', 'a boat'),
    ('44@N00_4_d.mpg', 'a fish'),
]


@pytest.fixture
def didemo(tmp_path):
    entries = [
        dict(annotation_id=i, video=video, description=text, times=[[0, 1]])
        for i, (video, text) in enumerate(DIDEMO)
    ]
    path = tmp_path / 'val_data.json'
    path.write_text(json.dumps(entries))
    return path


def test_didemo(didemo, tmp_path, run):
    out = tmp_path / 'out.json'
    args = '--annotations', didemo, '--out', out
    counts, status = run('didemo', *args)
    assert not status
    assert counts == dict(
        descriptions=5, paragraphs=4, videos=4, looked_for=0, missing=0
    )
    made = json.loads(out.read_text())
    assert made['11@N00_1_a.mov'] == ['the dog runs then it jumps']
    assert made['22@N00_2_b'] == ['it is dark']
    videos = tmp_path / 'videos'
    videos.mkdir()
    for name in ('11@N00_1_a.mp4', '22@N00_2_b', '33@N00_3_c.3gp.mp4'):
        (videos / name).touch()
    counts, status = run('didemo', *args, '--videos', videos)
    assert counts == dict(
        descriptions=5, paragraphs=4, videos=4, looked_for=4, missing=1
    )
    assert list(json.loads(out.read_text())) == [
        *('11@N00_1_a.mp4', '22@N00_2_b', '33@N00_3_c.3gp.mp4'),
        '44@N00_4_d.mpg',
    ]
    listed = tmp_path / 'val_list.txt'
    listed.write_text('33@N00_3_c.3gp\n11@N00_1_a\n')
    counts, status = run('didemo', *args, '--list', listed)
    assert (counts['descriptions'], counts['videos']) == (3, 2)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{}', 'is no list of annotations'),
        ('[{"video": "a"}]', "entry 0 has no 'description'"),
        (
            '[{"video": "a.mp4", "description": " "}]',
            "'a.mp4' has empty descriptions",
        ),
        ('nothing', 'is no JSON to use'),
        (None, 'No such file'),
    ],
)
def test_didemo_that_cannot_be_used(tmp_path, run, content, message):
    path = tmp_path / 'data.json'
    if content is not None:
        path.write_text(content)
    told, status = run('didemo', '--annotations', path, '--out', 'x.json')
    assert status == 2 and message in told


# ---------------------------------------------------------- verify, extract


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('source')
    write(folder / 'good.mov', num=40, codec='mpeg4')
    make_broken(folder, 'cut.mp4')
    return folder


def test_verify_videos(videos, tmp_path, run):
    content = {'good.mp4': ['a', 'b'], 'cut.mp4': ['c'], 'gone.mp4': ['d']}
    path = tmp_path / 'ann.json'
    path.write_text(json.dumps(content))
    args = path, '--videos', videos
    report, status = run('verify_videos', *args)
    assert status == 2
    assert report == dict(
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        videos=3,
        captions=4,
        missing=1,
        undecodable=1,
        remaining_videos=1,
        remaining_captions=2,
    )
    out = tmp_path / 'found.json'
    more = '--allow-missing', '--out', out
    assert run('verify_videos', *args, *more) == (report, 0)
    assert json.loads(out.read_text()) == {'good.mp4': ['a', 'b']}
    report, status = run('verify_videos', out, '--videos', videos)
    assert (status, report['videos'], report['undecodable']) == (0, 1, 0)
    # The other format stays as it is.
    entries = [dict(video=x, caption=y, id=3) for x, y in content.items()]
    path.write_text(json.dumps(entries))
    assert run('verify_videos', *args, *more)[1] == 0
    assert json.loads(out.read_text()) == entries[:1]


def test_extract_clips(videos, tmp_path, run):
    out = tmp_path / 'clips'
    args = videos, '--out', out, '--window', '1', '3', '--fps', '5'
    args = *args, '--short-side', '24', '--workers', '1'
    # The window ends before the file that is cut off does.
    counts, status = run('extract_clips', *args)
    assert status == 2
    assert counts == dict(
        videos=2, missing=0, undecodable=1, made_before=0, made=1
    )
    assert sorted(x.name for x in out.iterdir()) == ['clips.json', 'good.mp4']
    video = open_video(str(out / 'good.mp4'), 'pyav')
    frames = video.read(range(len(video.times)))
    assert video.times == pytest.approx(np.arange(10) / 5)
    assert frames[0].shape == (24, 32, 3)
    wide = [np.repeat(x, 2, 1) for x in frames]
    assert [number_of(x) for x in wide] == list(range(10, 30, 2))
    # Again: what is there is left; the policy lets a failure pass.
    counts, status = run('extract_clips', *args, '--policy', 'skip')
    assert (status, counts['made_before'], counts['made']) == (0, 1, 0)
    told, status = run('extract_clips', *args, '--fps', '4')
    assert status == 2 and 'choose another folder' in told


def test_extract_clips_refuses_what_would_go_wrong(videos, tmp_path, run):
    out = '--out', tmp_path / 'clips'
    out = *out, '--workers', '1'
    told, status = run('extract_clips', videos, *out, '--codec', 'nothing')
    assert status == 2 and 'nothing' in told
    ann = tmp_path / 'ann.json'
    ann.write_text(json.dumps({'../outside.mp4': ['x']}))
    told, status = run('extract_clips', videos, *out, '--annotations', ann)
    assert status == 2 and 'out of --out' in told


# --------------------------------------------------------------- toy videos


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp('toy')
    counts = make_toy_videos(out, num_train=24, num_test=12, num_frames=8)
    return out, counts


def test_toy_videos(toy, tmp_path, run):
    out, counts = toy
    assert counts['train'] == dict(videos=24, captions=96)
    assert counts['test'] == dict(videos=12, captions=12)
    again, status = run(
        *('make_toy_videos', tmp_path, '--num-train', '24'),
        *('--num-test', '12', '--num-frames', '8'),
    )
    assert (again, status) == (counts, 0)
    for path in sorted(out.rglob('*.*')):
        other = tmp_path / path.relative_to(out)
        assert path.read_bytes() == other.read_bytes(), path
    pytest.importorskip('regex')
    tokenize = CLIPTokenizer(str(out / 'vocabulary.txt'))
    assert tokenize.vocab_size == 599  # configs/_base_/models/clip4clip_toy.py
    for name in ('train', 'test'):
        for texts in json.loads((out / f'{name}.json').read_text()).values():
            for text in texts:  # a token for each word and comma
                words = len(text.replace(',', ' ,').split())
                assert len(tokenize(text, 99)) == words + 2 <= 24
    told, status = run('make_toy_videos', tmp_path, '--num-train', '8')
    assert status == 2 and 'choose another folder' in told
    told, status = run('make_toy_videos', tmp_path / 'x', '--size', '17')
    assert status == 2 and 'size must be even' in told


def test_toy_captions_need_order_and_combination(toy):
    train, test = (
        read_captions(toy[0] / f'{x}.json')
        for x in toy[1]
        if x in ('train', 'test')
    )
    texts = [text for every in train.values() for text in every]
    held_out = {' '.join(kind) for kind in HELD_OUT}
    assert not any(kind in text for kind in held_out for text in texts)
    (told,) = zip(*test.values())
    assert len(set(told)) == 12
    assert all(any(kind in text for kind in held_out) for text in told)
    words = {word for text in texts for word in text.replace(',', '').split()}
    assert {word for x in told for word in x.replace(',', '').split()} <= words


def test_toy_clips_come_forwards_and_backwards(toy):
    stories = list(_stories(12, True, 0))
    test = list(read_captions(toy[0] / 'test.json').values())
    for i in range(0, 12, 2):
        first, second = stories[i]
        assert stories[i + 1] == (second.backwards(), first.backwards())
        for j in (i, i + 1):
            sentences = [caption(stories[j], k) for k in range(len(CAPTIONS))]
            assert test[j][0] in sentences
    event = Event('red', 'circle', 'left to right')
    assert event.backwards().motion == 'right to left'


def test_toy_clips_show_what_is_told(toy):
    checked = 0
    for i, story in enumerate(_stories(12, True, 0)):
        if story[0].colour == story[1].colour:
            continue
        path = str(toy[0] / f'videos/test_{i:04d}.mp4')
        frames = open_video(path, 'pyav').read(range(8))
        for which, event in enumerate(story):
            colour = np.array(COLOURS[event.colour])
            near = [np.abs(x - colour).sum(-1) < 120 for x in frames]
            sizes = np.array([x.sum() for x in near])
            seen = np.flatnonzero(sizes > 0.5 * sizes.max())
            # In its part of the clip alone, the first or the last one.
            assert len(seen) >= 3 and (np.diff(seen) == 1).all()
            assert (seen[0], seen[-1])[which] == (0, 7)[which]
            centres = np.array([np.argwhere(near[j]).mean(0) for j in seen])
            steps = np.diff(centres, axis=0)
            # Rows go down.
            way = np.array(MOTIONS[event.motion][::-1])
            assert (steps @ way).min() > 1
            assert np.abs(steps @ (1 - np.abs(way))).max() < 1
            checked += 1
    assert checked >= 4
