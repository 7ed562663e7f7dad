# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A small corpus of real video files in which time decides what is shown.

In each clip two coloured shapes move, one after the other; the one that moves
is seen. A caption tells colours, shapes, directions and their order. A
clip played backwards shows the same frames and has another caption, and the
test has both: by single frames they cannot be told apart. And in each test
clip is a colour of a shape that no training clip has.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
from joblib import Parallel, cpu_count, delayed

from transmamba_mm.checks import check_int

from .video_files import read_json, write_video

FPS = 8
COLOURS = dict(
    red=(230, 40, 40),
    green=(40, 200, 60),
    blue=(60, 90, 250),
    yellow=(240, 220, 40),
    purple=(190, 60, 220),
    cyan=(40, 220, 220),
)
SHAPES = ('circle', 'square', 'triangle', 'cross')
MOTIONS = {
    'left to right': (1, 0),
    'right to left': (-1, 0),
    'top to bottom': (0, 1),
    'bottom to top': (0, -1),
}
CAPTIONS = (
    'a {} moves {}, then a {} moves {}',
    'first a {} moves {}, and after that a {} moves {}',
    'a {} moves {} before a {} moves {}',
    'after a {} has moved {}, a {} moves {}',
)
#: Colours of shapes that are in the test alone.
HELD_OUT = tuple(
    (colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS)
)
_NOTE = 'toy_videos.json'
_FINE = 4  # samples per pixel and side


@dataclass(frozen=True)
class Event:
    """A shape that moves.

    Attributes:
        colour (str): One of :data:`COLOURS`.
        shape (str): One of :data:`SHAPES`.
        motion (str): One of :data:`MOTIONS`.
    """

    colour: str
    shape: str
    motion: str

    def backwards(self) -> 'Event':
        """The event as seen in a clip that is played backwards."""
        start, end = self.motion.split(' to ')
        return Event(self.colour, self.shape, f'{end} to {start}')


Story = tuple[Event, Event]


def vocabulary() -> str:
    """Merges for ``CLIPTokenizer`` that make one token of each word."""
    sentences = ' '.join([*CAPTIONS, *MOTIONS, *COLOURS, *SHAPES])
    merges = ['#version: 0.2']
    # Early merges come first, so long words keep what short ones begin with.
    for word in sorted(set(re.findall('[a-z]+', sentences)), key=len)[::-1]:
        parts = [*word[:-1], f'{word[-1]}</w>']
        merges += [
            f'{"".join(parts[:i])} {parts[i]}' for i in range(1, len(parts))
        ]
    return '\n'.join(dict.fromkeys([*merges, '']))


def caption(story: Story, template: int) -> str:
    """One of the sentences that tell a story.

    Args:
        story (tuple[Event, Event]): The events, in their order.
        template (int): Which of :data:`CAPTIONS`.

    Returns:
        str: The sentence.
    """
    return CAPTIONS[template].format(
        *(
            part
            for event in story
            for part in (f'{event.colour} {event.shape}', event.motion)
        )
    )


def _stories(num: int, test: bool, seed: int) -> Iterator[Story]:
    """Different stories; in the test each is followed by its reverse."""
    draw = np.random.default_rng([seed, test])
    kinds = [(c, s) for c in COLOURS for s in SHAPES]
    known = [kind for kind in kinds if kind not in HELD_OUT]
    seen: set[Story] = set()
    while len(seen) < num:
        pools = (HELD_OUT, kinds) if test else (known, known)
        pair = [pool[draw.integers(len(pool))] for pool in pools]
        if pair[0] == pair[1]:
            continue
        story = tuple(
            Event(*pair[i], list(MOTIONS)[draw.integers(len(MOTIONS))])
            for i in draw.permutation(2)
        )
        both = [story]
        if test:
            both.append(tuple(x.backwards() for x in reversed(story)))
        if not seen & set(both):
            for each in both[: num - len(seen)]:
                seen.add(each)
                yield each


def render(
    story: Story, num_frames: int, size: int, draw: np.random.Generator
) -> list[np.ndarray]:
    """Draws a clip.

    Args:
        story (tuple[Event, Event]): The events, in their order.
        num_frames (int): Number of frames.
        size (int): Width and height in pixels.
        draw (np.random.Generator): Decides background, sizes and places.

    Returns:
        list[np.ndarray]: RGB images (size, size, 3) uint8.
    """
    turn = draw.uniform(0.4, 0.6)  # when the second starts to move
    times = np.arange(num_frames) / (num_frames - 1)
    progress = (times / turn, (times - turn) / (1 - turn))
    radii = draw.uniform(0.13, 0.18, 2)
    lanes = draw.uniform(0.2, 0.8, 2)
    background = draw.uniform(0, 70) + draw.uniform(-12, 12, 3)
    frames = []
    for i in range(num_frames):
        image = np.broadcast_to(background, (size, size, 3)).copy()
        which = int(times[i] >= turn)
        event, radius = story[which], radii[which]
        along = progress[which][i] - 0.5
        step = np.array(MOTIONS[event.motion])
        place = 0.5 + step * along * (0.94 - 2 * radius)
        place[step == 0] = lanes[which]
        covered = cover(event.shape, *place, radius, size)[..., None]
        image += covered * (COLOURS[event.colour] - image)
        image += draw.normal(0, 4, image.shape)
        frames.append(image.clip(0, 255).astype(np.uint8))
    return frames


def cover(
    shape: str, x: float, y: float, radius: float, size: int
) -> np.ndarray:
    """How much of each pixel a shape covers, in 0..1.

    Args:
        shape (str): One of :data:`SHAPES`.
        x (float): Its middle from the left, as a share of the image.
        y (float): Likewise from the top.
        radius (float): Half of its extent, likewise.
        size (int): Width and height of the image in pixels.

    Returns:
        np.ndarray: (size, size).
    """
    axis = (np.arange(size * _FINE) + 0.5) / (size * _FINE)
    across, down = (axis - x)[None] / radius, (axis - y)[:, None] / radius
    sides = np.maximum(abs(across), abs(down))
    inside = dict(
        circle=across**2 + down**2 < 1,
        square=sides < 0.85,
        triangle=(abs(across) < (down + 1) / 2) & (down < 0.9),
        cross=(sides < 1) & (np.minimum(abs(across), abs(down)) < 0.32),
    )[shape]
    return inside.reshape(size, _FINE, size, _FINE).mean((1, 3))


def make_toy_videos(
    out: Union[str, Path],
    num_train: int = 2000,
    num_test: int = 200,
    num_frames: int = 12,
    size: int = 32,
    seed: int = 0,
) -> dict:
    """Writes clips ``videos/*.mp4``, ``train.json`` and ``test.json``.

    A training clip has all captions of :data:`CAPTIONS`, a test clip one.
    ``vocabulary.txt`` is for ``CLIPTokenizer``, which has 599 tokens then.
    The same arguments give the same clips; what is complete is not made
    again.

    Args:
        out (str | Path): The folder.
        num_train (int): Clips to train on. Defaults to 2000.
        num_test (int): Clips to test on. Defaults to 200.
        num_frames (int): Frames of each, at 8 per second. Defaults to 12.
        size (int): Width and height in pixels, even. Defaults to 32.
        seed (int): Seed of everything. Defaults to 0.

    Returns:
        dict: How many ``videos`` and ``captions`` there are, in all and by
        split.

    Raises:
        ValueError: If an argument makes no sense, or the folder was made
            with others.
    """
    check_int('num_train', num_train)
    check_int('num_test', num_test)
    check_int('num_frames', num_frames, minimum=4)
    check_int('seed', seed, minimum=0)
    if check_int('size', size, minimum=16) % 2:
        raise ValueError(f'size must be even, got {size}')
    numbers = dict(train=num_train, test=num_test)
    for split, limit in dict(train=4896, test=2000).items():
        if numbers[split] > limit:
            raise ValueError(f'num_{split} must be at most {limit}')
    out = Path(out)
    settings = dict(numbers, num_frames=num_frames, size=size, seed=seed)
    note = out / _NOTE
    if note.exists():
        made = read_json(note)
        if made['settings'] != settings:
            raise ValueError(
                f"'{out}' was made with {made['settings']}, not with "
                f'{settings}: choose another folder'
            )
        return made['counts']
    (out / 'videos').mkdir(parents=True, exist_ok=True)
    (out / 'vocabulary.txt').write_text(vocabulary())
    counts: dict = dict(videos=0, captions=0)
    for split, num in numbers.items():
        stories = list(_stories(num, split == 'test', seed))
        names = [f'{split}_{i:04d}.mp4' for i in range(num)]
        jobs = [
            delayed(_write)(out / 'videos' / name, story, settings, i, split)
            for i, (name, story) in enumerate(zip(names, stories))
        ]
        workers = cpu_count() if num > 500 else 1
        Parallel(n_jobs=workers, batch_size=64)(jobs)
        draw = np.random.default_rng([seed, 2])
        captions = {
            name: [
                caption(story, template)
                for template in (
                    range(len(CAPTIONS))
                    if split == 'train'
                    else [draw.integers(len(CAPTIONS))]
                )
            ]
            for name, story in zip(names, stories)
        }
        (out / f'{split}.json').write_text(json.dumps(captions, indent=1))
        told = sum(map(len, captions.values()))
        counts[split] = dict(videos=num, captions=told)
        counts['videos'] += num
        counts['captions'] += told
    note.write_text(json.dumps(dict(settings=settings, counts=counts)))
    return counts


def _write(
    path: Path, story: Story, settings: dict, index: int, split: str
) -> None:
    draw = np.random.default_rng([settings['seed'], index, split == 'test'])
    num, size = settings['num_frames'], settings['size']
    frames = render(story, num, size, draw)
    # With a quality to aim at, x264 does not write the same file each time.
    fine = dict(qmin='2', qmax='2')
    write_video(path, frames, np.arange(num) / FPS, 'mpeg4', fine)
