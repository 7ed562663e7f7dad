# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A small corpus of drawn shapes and questions about them.

An image shows some shapes, each in a cell of a grid. Questions are made of
parts: a colour, a shape, how many, where one is from another, whether there is
one. There are two tests: one of new images, and one of which every question is
about a colour of a shape that no other image has. Questions are short, since a
token is a byte.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import mmcv
import numpy as np

from transmamba_mm.checks import check_int

from .toy_videos import COLOURS, HELD_OUT, SHAPES, cover
from .video_files import read_json

#: Name of a relation to the step from the one to the other.
RELATIONS = {
    'left of': (-1, 0),
    'right of': (1, 0),
    'above': (0, -1),
    'below': (0, 1),
}
_CELLS = 3  # in each direction
_KINDS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
_NOTE = 'toy_vqa.json'


@dataclass(frozen=True)
class Thing:
    """A shape in an image.

    Attributes:
        colour (str): One of :data:`~.toy_videos.COLOURS`.
        shape (str): One of :data:`~.toy_videos.SHAPES`.
        column (int): Its cell, from the left.
        row (int): Its cell, from the top.
    """

    colour: str
    shape: str
    column: int
    row: int


Scene = Sequence[Thing]
#: A question and its answer, None where the scene does not allow it.
Asked = Optional[tuple[str, str]]


def draw_scene(draw: np.random.Generator, held_out: bool) -> list[Thing]:
    """Two to four things, each in a cell of its own.

    Args:
        draw (np.random.Generator): Draws it.
        held_out (bool): Whether the first thing is of
            :data:`~.toy_videos.HELD_OUT`, of which otherwise none is.

    Returns:
        list[Thing]: The first is the one that questions are about.
    """
    known = [kind for kind in _KINDS if kind not in HELD_OUT]
    count = draw.integers(2, 5)
    pools = [HELD_OUT if held_out else known]
    pools += [_KINDS if held_out else known] * 3
    cells = draw.permutation(_CELLS**2)
    things = []
    for pool, cell in zip(pools[:count], cells):
        colour, shape = pool[draw.integers(len(pool))]
        # Often alike, so that counting goes beyond one.
        if things and draw.random() < 0.4:
            kind = (colour, things[0].shape), (things[0].colour, shape)
            other = kind[draw.integers(2)]
            colour, shape = other if other in pool else (colour, shape)
        things.append(Thing(colour, shape, *divmod(int(cell), _CELLS)))
    return things


def _colour(draw: np.random.Generator, scene: Scene) -> Asked:
    thing = scene[0]
    if sum(x.shape == thing.shape for x in scene) > 1:
        return None
    return f'colour of {thing.shape}?', thing.colour


def _shape(draw: np.random.Generator, scene: Scene) -> Asked:
    thing = scene[0]
    if sum(x.colour == thing.colour for x in scene) > 1:
        return None
    return f'shape in {thing.colour}?', thing.shape


def _count(draw: np.random.Generator, scene: Scene) -> Asked:
    thing = scene[0]
    if draw.random() < 0.5:
        number = sum(x.shape == thing.shape for x in scene)
        return f'how many {thing.shape}?', str(number)
    number = sum(x.colour == thing.colour for x in scene)
    return f'how many {thing.colour}?', str(number)


def _relation(draw: np.random.Generator, scene: Scene) -> Asked:
    thing, other = scene[0], scene[draw.integers(1, len(scene))]
    if sum(x.shape in (thing.shape, other.shape) for x in scene) > 2:
        return None
    name = list(RELATIONS)[draw.integers(len(RELATIONS))]
    across, down = RELATIONS[name]
    step = across * (thing.column - other.column)
    step += down * (thing.row - other.row)
    if step == 0 or thing.shape == other.shape:
        return None
    answer = 'yes' if step > 0 else 'no'
    return f'{thing.shape} {name} {other.shape}?', answer


def _existence(draw: np.random.Generator, scene: Scene) -> Asked:
    thing = scene[0]
    if draw.random() < 0.5:
        return f'any {thing.colour} {thing.shape}?', 'yes'
    # As likely as it seems: its colour and its shape are there, maybe apart.
    absent = [
        kind
        for kind in _KINDS
        if (kind[0] == thing.colour or kind[1] == thing.shape)
        and all(kind != (x.colour, x.shape) for x in scene)
    ]
    colour, shape = absent[draw.integers(len(absent))]
    return f'any {colour} {shape}?', 'no'


#: What is asked, by kind.
QUESTIONS: dict[str, Callable[[np.random.Generator, Scene], Asked]] = dict(
    colour=_colour,
    shape=_shape,
    count=_count,
    relation=_relation,
    existence=_existence,
)


def render(scene: Scene, size: int, draw: np.random.Generator) -> np.ndarray:
    """Draws an image.

    Args:
        scene (Sequence[Thing]): What it shows.
        size (int): Width and height in pixels.
        draw (np.random.Generator): Decides background, sizes and places.

    Returns:
        np.ndarray: RGB (size, size, 3) uint8.
    """
    background = draw.uniform(0, 70) + draw.uniform(-12, 12, 3)
    image = np.broadcast_to(background, (size, size, 3)).copy()
    for thing in scene:
        radius = draw.uniform(0.38, 0.48) / _CELLS
        place = np.array([thing.column, thing.row]) + 0.5
        place = (place + draw.uniform(-0.08, 0.08, 2)) / _CELLS
        covered = cover(thing.shape, *place, radius, size)[..., None]
        image += covered * (COLOURS[thing.colour] - image)
    image += draw.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def make_toy_vqa(
    out: Union[str, Path],
    num_train: int = 6000,
    num_test: int = 500,
    turns: int = 3,
    size: int = 36,
    seed: int = 0,
) -> dict:
    """Writes images and ``train.json``, ``test.json``, ``held_out.json``.

    The files are in LLaVA's format, see
    :class:`~transmamba_mm.datasets.LLaVAInstructDataset`: of a training image
    several turns, of a test image one, of all kinds alike. ``held_out.json``
    is a second test, see the module. The same arguments give the same corpus;
    what is complete is not made again.

    Args:
        out (str | Path): The folder.
        num_train (int): Images to train on. Defaults to 6000.
        num_test (int): Images of each test. Defaults to 500.
        turns (int): Questions about a training image, at most 5. Defaults
            to 3.
        size (int): Width and height in pixels. Defaults to 36.
        seed (int): Seed of everything. Defaults to 0.

    Returns:
        dict: How many ``images`` and ``questions`` each split has, and how
        many questions of each kind.

    Raises:
        ValueError: If an argument makes no sense, or the folder was made
            with others.
    """
    settings = dict(
        num_train=check_int('num_train', num_train),
        num_test=check_int('num_test', num_test),
        turns=check_int('turns', turns),
        size=check_int('size', size, minimum=24),
        seed=check_int('seed', seed, minimum=0),
    )
    if turns > len(QUESTIONS):
        raise ValueError(f'turns must be at most {len(QUESTIONS)}')
    out = Path(out)
    note = out / _NOTE
    if note.exists():
        made = read_json(note)
        if made['settings'] != settings:
            raise ValueError(
                f"'{out}' was made with {made['settings']}, not with "
                f'{settings}: choose another folder'
            )
        return made['counts']
    (out / 'images').mkdir(parents=True, exist_ok=True)
    counts = {}
    splits = dict(train=num_train, test=num_test, held_out=num_test)
    for split, num in splits.items():
        rows, kinds = [], dict.fromkeys(QUESTIONS, 0)
        for i in range(num):
            draw = np.random.default_rng([seed, list(splits).index(split), i])
            names = list(QUESTIONS)
            wanted = [names[i % len(names)]]
            if split == 'train':
                wanted = list(draw.permutation(names))[:turns]
            scene, asked = _conversation(draw, split == 'held_out', wanted)
            image = f'images/{split}_{i:05d}.png'
            pixels = render(scene, size, draw)
            mmcv.imwrite(np.ascontiguousarray(pixels[..., ::-1]), out / image)
            rows.append(_row(f'{split}_{i:05d}', image, asked))
            for kind in wanted:
                kinds[kind] += 1
        (out / f'{split}.json').write_text(json.dumps(rows, indent=1))
        counts[split] = dict(images=num, questions=sum(kinds.values()))
        counts[split].update(kinds)
    note.write_text(json.dumps(dict(settings=settings, counts=counts)))
    return counts


def _conversation(
    draw: np.random.Generator, held_out: bool, kinds: Sequence[str]
) -> tuple[list[Thing], list[tuple[str, str]]]:
    """A scene that allows questions of these kinds, and the questions."""
    while True:
        scene = draw_scene(draw, held_out)
        asked = [QUESTIONS[kind](draw, scene) for kind in kinds]
        if None not in asked:
            return scene, asked


def _row(name: str, image: str, asked: Sequence[tuple[str, str]]) -> dict:
    said = []
    for i, (question, answer) in enumerate(asked):
        place = '' if i else '<image>\n'
        said.append({'from': 'human', 'value': place + question})
        said.append({'from': 'gpt', 'value': answer})
    return dict(id=name, image=image, conversations=said)
