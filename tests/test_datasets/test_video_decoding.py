# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The frames asked for are those that come, whatever the file."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from video_cases import (
    BROKEN,
    HEIGHT,
    WIDTH,
    coded_frame,
    make_broken,
    number_of,
    rotate,
    write,
    write_audio,
)

from transmamba_mm.datasets.transforms import LoadVideo, UnreadableVideoError
from transmamba_mm.datasets.transforms.video_decoding import open_video
from transmamba_mm.datasets.transforms.video_frames import choose_frames

DECODERS = ('pyav', 'opencv')
# File, and how it is coded: closed and open groups of pictures, frames that
# others do not depend on, timestamps as of Matroska, an old AVI.
FILES = {
    'plain.mp4': dict(codec='mpeg4'),
    'b_frames.mp4': dict(b_frames=3),
    'open_gop.mkv': dict(
        b_frames=2, options={'x264-params': 'open-gop=1:keyint=8:scenecut=0'}
    ),
    'refresh.mp4': dict(options={'x264-params': 'intra-refresh=1:keyint=10'}),
    'old.avi': dict(codec='mpeg4', b_frames=2),
    'web.webm': dict(codec='libvpx-vp9'),
    'no_ending': dict(codec='mpeg4'),
    'old.wmv': dict(codec='wmv2'),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp('videos')
    for name, how in FILES.items():
        path = made / (name if '.' in name else f'{name}.mp4')
        write(path, **how)
        path.rename(made / name)
    return made


def numbers(video, indices):
    return [number_of(frame) for frame in video.read(indices)]


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('name', FILES)
def test_exact_frames(folder, name, decoder):
    video = open_video(str(folder / name), decoder)
    video.check_whole()
    assert video.times == pytest.approx(np.arange(40) / 10, abs=1e-3)
    assert video.duration == pytest.approx(4)
    for indices in (range(40), [0], [39], [3, 17, 18, 39], [11, 12, 25]):
        assert numbers(video, indices) == list(indices)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 39), min_size=1))
def test_any_frames_are_those_of_the_whole(folder, indices):
    for name in ('b_frames.mp4', 'open_gop.mkv', 'refresh.mp4', 'web.webm'):
        video = open_video(str(folder / name), 'pyav')
        whole = video.read(range(40))
        for index, frame in zip(sorted(indices), video.read(sorted(indices))):
            assert (frame == whole[index]).all()


def test_only_what_is_needed_is_decoded(folder):
    video = open_video(str(folder / 'plain.mp4'), 'pyav')
    keys = [i for i, (_, is_key, _) in enumerate(video._packets) if is_key]
    assert len(keys) > 3
    wanted = {video._stamps[i]: i for i in (25, 38)}
    needed = set()
    for index in (25, 38):
        start = max(key for key in keys if key <= index)
        needed |= set(range(start, index + 1))
    assert set(np.flatnonzero(video._needed(wanted))) == needed
    assert len(needed) < 30


@pytest.mark.parametrize('decoder', DECODERS)
def test_a_varying_frame_rate(tmp_path, decoder):
    # Ten frames in the first second, then one every second.
    times = [*np.arange(10) / 10, *range(1, 11)]
    path = write(tmp_path / 'varying.mp4', num=20, times=times)
    video = open_video(path, decoder)
    assert video.times == pytest.approx(times, abs=2e-3)
    load = LoadVideo(max_frames=20, fps=1, decoder=decoder)
    frames = load(dict(video_path=path))['frames']
    assert [number_of(x) for x in frames] == [0, *range(10, 20)]


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_a_rotated_video_is_upright(tmp_path, decoder, degrees):
    def corner(number):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[:16, :16] = 255  # top left, as it is stored
        return image

    path = write(tmp_path / 'a.mp4', num=3, frame=corner)
    rotate(path, degrees)
    (frame,) = open_video(path, decoder).read([1])
    clockwise = np.rot90(corner(0), -degrees // 90)
    assert frame.shape == clockwise.shape
    assert np.abs(frame.astype(int) - clockwise).mean() < 12


@pytest.mark.parametrize('decoder', DECODERS)
def test_colours_are_rgb(tmp_path, decoder):
    def red(number):
        return np.full((HEIGHT, WIDTH, 3), (230, 20, 20), np.uint8)

    path = write(tmp_path / 'a.mp4', num=2, frame=red)
    (frame,) = open_video(path, decoder).read([0])
    assert np.abs(frame.mean((0, 1)) - (230, 20, 20)).max() < 12


@pytest.mark.parametrize('decoder', DECODERS)
def test_a_stream_without_times(tmp_path, decoder):
    path = write(tmp_path / 'raw.h264', b_frames=2)
    video = open_video(path, decoder)
    assert video.times == pytest.approx(np.arange(40) / video.rate)
    assert numbers(video, [3, 17, 18, 39]) == [3, 17, 18, 39]


def test_one_frame_and_odd_sides(tmp_path):
    path = write(
        tmp_path / 'one.avi',
        num=1,
        codec='ffv1',
        frame=lambda i: coded_frame(5, (63, 47)),
        width=63,
        height=47,
    )
    for decoder in DECODERS:
        sample = LoadVideo(decoder=decoder)(dict(video_path=path))
        (frame,) = sample['frames']
        assert frame.shape == (47, 63, 3)
        assert number_of(frame) == 5


def test_a_folder_is_in_the_order_of_its_numbers(tmp_path):
    for i in range(12):
        Image.fromarray(coded_frame(i)).save(tmp_path / f'f{i}.png')
    (tmp_path / '.hidden.png').write_bytes(b'')
    (tmp_path / 'notes.txt').write_text('')
    sample = LoadVideo(max_frames=20)(dict(video_path=str(tmp_path)))
    assert [number_of(x) for x in sample['frames']] == list(range(12))
    load = LoadVideo(max_frames=20, folder_fps=4, window=(1, 2))
    sample = load(dict(video_path=str(tmp_path)))
    assert [number_of(x) for x in sample['frames']] == [4]


# ------------------------------------------------------------------- broken


@pytest.fixture(scope='module')
def broken(tmp_path_factory):
    return tmp_path_factory.mktemp('broken')


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_video_is_named_with_the_cause(broken, name, decoder):
    path = make_broken(broken, name)
    _, by_pyav, by_opencv = BROKEN[name]
    cause = by_opencv or by_pyav if decoder == 'opencv' else by_pyav
    load = LoadVideo(max_frames=40, fps=None, decoder=decoder)
    with pytest.raises(UnreadableVideoError, match=cause) as caught:
        load(dict(video_path=path))
    text = str(caught.value)
    assert text.startswith(f"video '{path}' cannot be read: ")
    assert 'verify_videos.py' in text


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_damage_is_reported_as_such(folder, tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(FILES)))
    content = bytearray((folder / name).read_bytes())
    place = st.integers(0, len(content) - 1)
    for where in data.draw(st.lists(place, max_size=20)):
        content[where] = data.draw(st.integers(0, 255))
    content = content[: data.draw(place)]
    path = tmp_path_factory.getbasetemp() / f'damaged_{name}'
    path.write_bytes(content)
    for decoder in DECODERS:
        try:
            sample = LoadVideo(decoder=decoder)(dict(video_path=str(path)))
        except UnreadableVideoError:
            continue
        assert sample['frames']


def test_a_cover_picture_is_no_video(tmp_path):
    path = write_audio(tmp_path / 'song.mp4', coded_frame(1))
    with pytest.raises(UnreadableVideoError, match='no video stream'):
        LoadVideo(decoder='pyav')(dict(video_path=path))


def test_what_is_cut_off_behind_the_window_does_not_matter(broken):
    path = make_broken(broken, 'cut.mp4')
    sample = LoadVideo(fps=2, window=(0, 1.5))(dict(video_path=path))
    assert len(sample['frames']) == 3
    with pytest.raises(UnreadableVideoError, match='cut off'):
        LoadVideo(fps=2, window=(0, 2.5))(dict(video_path=path))


def test_a_video_that_ends_before_the_window(folder):
    path = str(folder / 'plain.mp4')
    with pytest.raises(
        UnreadableVideoError, match=r'ends after 4\.00 seconds, before'
    ):
        LoadVideo(window=(5, 8))(dict(video_path=path))


# ----------------------------------------------------------------- sampling


def clip4clip(num, fps, max_frames):
    """Indices of CLIP4Clip's RawVideoExtractor with slice_framepos=2."""
    taken = list(range(0, num, fps))
    if len(taken) > max_frames:
        kept = np.linspace(0, len(taken) - 1, num=max_frames, dtype=int)
        taken = [taken[i] for i in kept]
    return taken


@given(st.integers(1, 900), st.integers(1, 60), st.integers(1, 64))
def test_frames_per_second_are_those_of_clip4clip(num, fps, max_frames):
    chosen = choose_frames(np.arange(num) / fps, num / fps, max_frames)
    assert chosen.tolist() == clip4clip(num, fps, max_frames)


@given(st.integers(1, 300), st.integers(1, 40), st.booleans())
def test_uniform_frames(num, max_frames, random_offset):
    chosen = choose_frames(
        np.arange(num) / 7,
        num / 7,
        max_frames,
        fps=None,
        random_offset=random_offset,
    )
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0 and chosen[-1] < num
    if not random_offset:
        assert len(chosen) == min(num, max_frames)
    # One of each segment, of those in which a frame begins.
    assert len(chosen) >= min(num, max_frames) / 2
    assert np.diff(chosen, prepend=0, append=num).max() <= (
        2 * np.ceil(num / max_frames)
    )


def test_random_offsets_differ_and_follow_numpys_seed():
    times = np.arange(100) / 10

    def draw(seed, **kwargs):
        np.random.seed(seed)
        chosen = choose_frames(times, 10, 4, random_offset=True, **kwargs)
        return chosen.tolist()

    for fps in (None, 1):
        assert draw(0, fps=fps) == draw(0, fps=fps) != draw(1, fps=fps)


def test_the_window():
    times = np.arange(600) / 10
    chosen = choose_frames(times, 60, 64, window=(0, 31))
    assert chosen.tolist() == list(range(0, 310, 10))
    chosen = choose_frames(times, 60, 64, window=(50, 90))
    assert chosen.tolist() == list(range(500, 600, 10))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(max_frames=0), 'max_frames must be at least 1'),
        (dict(fps=0), 'fps must be positive'),
        (dict(window=(3, 3)), 'window must end after it begins'),
        (dict(window=5), r'window must be \(start, stop\)'),
        (dict(window=(-1, 3)), 'start of window must be at least 0'),
        (dict(decoder='decord'), "'auto', 'pyav' or 'opencv'"),
        (dict(folder_fps=-1), 'folder_fps must be positive'),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        LoadVideo(**settings)


# ------------------------------------------------------------- without PyAV


def test_without_pyav(folder):
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'av':
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
import transmamba_mm
from transmamba_mm.registry import DATASETS, TRANSFORMS
assert len(DATASETS.build(dict(type='transmamba.Digits'))) == 1297
load = TRANSFORMS.build(dict(type='transmamba.LoadVideo', max_frames=3))
sample = load(dict(video_path={str(folder / 'plain.mp4')!r}))
assert len(sample['frames']) == 3
try:
    TRANSFORMS.build(dict(type='transmamba.LoadVideo', decoder='pyav'))
except ValueError as error:
    assert "pip install 'transmamba_mm[video]'" in str(error), error
else:
    raise AssertionError
assert 'av' not in sys.modules
"""
    subprocess.run([sys.executable, '-c', code], check=True)
