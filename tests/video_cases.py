# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tiny videos: whose pixels tell the number of a frame, and broken ones."""

import os
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

BITS = 6
WIDTH, HEIGHT = 64, 48


def coded_frame(number, size=(WIDTH, HEIGHT)):
    """An image with six bars, white for the ones of a binary number."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for bit in range(BITS):
        image[:, bit * 10 : bit * 10 + 10] = 255 * (number >> bit & 1)
    return image


def number_of(image):
    """The number of :func:`coded_frame`."""
    return sum(
        (image[:, bit * 10 + 3 : bit * 10 + 7].mean() > 127) << bit
        for bit in range(BITS)
    )


def write(
    path,
    num=40,
    fps=10,
    codec='libx264',
    frame=coded_frame,
    times=None,
    gop=12,
    b_frames=0,
    mux=None,
    options=None,
    **size,
):
    """Writes a video of ``num`` frames, returns its path."""
    with av.open(str(path), 'w', options=mux or {}) as container:
        stream = container.add_stream(codec, fps, options=options or {})
        stream.width = size.get('width', WIDTH)
        stream.height = size.get('height', HEIGHT)
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(num):
            picture = av.VideoFrame.from_ndarray(frame(i), format='rgb24')
            picture.pts = i if times is None else round(1000 * times[i])
            if times is not None:
                picture.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return str(path)


def noise(number):
    """A frame that needs many bytes."""
    draw = np.random.default_rng(number)
    return draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def rotate(path, degrees):
    """Says in the header of an MP4 that its frames lie on their side."""
    data = bytearray(Path(path).read_bytes())
    matrix = {
        90: (0, 1, 0, -1, 0, 0),
        180: (-1, 0, 0, 0, -1, 0),
        270: (0, -1, 0, 1, 0, 0),
    }[degrees]
    start = data.index(b'tkhd') + 4 + 40
    a, b, u, c, d, v = (x << 16 for x in matrix)
    data[start : start + 36] = struct.pack(
        '>9i', a, b, u, c, d, v, 0, 0, 1 << 30
    )
    Path(path).write_bytes(data)
    return str(path)


def write_audio(path, picture=None):
    """A file with sound alone, maybe with a cover picture."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', 8000)
        cover = None
        if picture is not None:
            cover = container.add_stream('mjpeg', 1)
            cover.width, cover.height = picture.shape[1], picture.shape[0]
            cover.pix_fmt = 'yuvj420p'
            cover.disposition = av.stream.Disposition.attached_pic.value
        samples = np.zeros((1, 1024), np.float32)
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(samples, 'fltp', 'mono')
            frame.sample_rate, frame.pts = 8000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if cover is not None:
            image = av.VideoFrame.from_ndarray(picture, format='rgb24')
            container.mux(cover.encode(image.reformat(format='yuvj420p')))
            container.mux(cover.encode())
    return str(path)


def _cut(path, share, **kwargs):
    write(path, **kwargs)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _damaged(path):
    write(path, frame=noise, mux=dict(movflags='faststart'))
    data = bytearray(path.read_bytes())
    start = data.index(b'mdat') + (len(data) - data.index(b'mdat')) // 3
    length = (len(data) - start) // 2
    data[start : start + length] = bytes([0xA5]) * length
    path.write_bytes(data)


def _no_frame(path):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', 10)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = 'yuv420p'
        container.start_encoding()


def _folder(path):
    path.mkdir()
    (path / 'readme.txt').write_text('no image')


def _broken_image(path):
    path.mkdir()
    Image.fromarray(coded_frame(0)).save(path / '0.png')
    (path / '1.png').write_bytes(b'no image')


def _huge(path):
    write(path, num=1, codec='ffv1')
    data = path.read_bytes()
    sides = struct.pack('<ii', WIDTH, HEIGHT)
    place = data.index(sides, data.index(b'strf'))
    sides = struct.pack('<ii', 12000, 12000)
    path.write_bytes(data[:place] + sides + data[place + 8 :])


#: name -> how it is made (None: not at all), and what the error says: by
#: PyAV, by OpenCV.
BROKEN = {
    'missing.mp4': (None, 'there is no such file', None),
    'empty.mp4': (lambda p: p.touch(), 'the file is empty', None),
    'text.mp4': (
        lambda p: p.write_text('<html>404 Not Found</html>\n' * 50),
        'it is no video',
        'OpenCV finds no video in it',
    ),
    'random.mp4': (
        lambda p: p.write_bytes(
            np.random.default_rng(0).bytes(5000),
        ),
        'it is no video',
        'OpenCV finds no video in it',
    ),
    'playlist.mp4': (
        lambda p: p.write_text(
            '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n'
            'http://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n'
        ),
        'cannot be read: ',
        'OpenCV finds no video in it',
    ),
    'half_header.mp4': (
        lambda p: _cut(p, 0.02, frame=noise),
        'it is no video, or is damaged',
        'OpenCV finds no video in it',
    ),
    'not_finished.mp4': (
        lambda p: _cut(p, 0.6, frame=noise),
        'it is no video, or is damaged',
        'OpenCV finds no video in it',
    ),
    'cut.mp4': (
        lambda p: _cut(p, 0.5, frame=noise, mux=dict(movflags='faststart')),
        'it is cut off after 1.90 seconds of 4.00',
        'it is cut off after 1.90 seconds of 4.00',
    ),
    'cut.mkv': (
        lambda p: _cut(p, 0.5, frame=noise),
        'it is cut off after',
        'it is cut off after',
    ),
    'damaged.mp4': (
        _damaged,
        'it is no video, or is damaged|cannot be decoded',
        'cannot be decoded|cut off',
    ),
    'sound.m4a': (
        write_audio,
        'it has no video stream',
        'OpenCV finds no video in it',
    ),
    'no_frame.mp4': (_no_frame, 'no video stream', 'OpenCV finds no video'),
    'no_frame.mkv': (
        _no_frame,
        'is damaged .End of file',
        'OpenCV finds no video',
    ),
    'no_images': (_folder, 'the folder holds no image', None),
    'broken_image': (_broken_image, r"1\.png' is no image", None),
    'dangling.mp4': (
        lambda p: p.symlink_to('gone.mp4'),
        'there is no such file',
        None,
    ),
    'pipe.mp4': (lambda p: os.mkfifo(p), 'it is no file', None),
    'huge.avi': (_huge, 'said to be 12000 x 12000', None),
}


def make_broken(folder, name):
    """Makes one of :data:`BROKEN`, returns its path."""
    path = Path(folder) / name
    make = BROKEN[name][0]
    if make is not None and not (path.exists() or path.is_symlink()):
        make(path)
    return str(path)


def copy_of(path, target):
    """A copy of a video, returns its path."""
    shutil.copy(path, target)
    return str(target)
