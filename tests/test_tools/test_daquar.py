# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""DAQUAR becomes LLaVA's format."""

import json

import cv2
import numpy as np
import pytest
from helpers import run_tool_here

from transmamba_mm.datasets import LLaVAInstructDataset

TOOL = 'dataset_converters/daquar'
PAIRS = """\
what is left of the bin in the image1 ?
garbage_bin
what are in this image1 close to the wall in the image1 ?
book, tape_dispenser
what is the image1 made of ?
wood
what is on the table in the image2 ?
lamp
how many are on the image2 ?
3
"""


@pytest.fixture
def folder(tmp_path):
    """What is distributed, of three images."""
    (tmp_path / 'images').mkdir()
    for i in (1, 2, 3):
        picture = np.zeros((4, 4, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f'images/image{i}.jpg'), picture)
    (tmp_path / 'all_qa_pairs.txt').write_text(PAIRS)
    (tmp_path / 'train_images_list.txt').write_text('image1\nimage3\n')
    (tmp_path / 'test_images_list.txt').write_text('image2\n')
    return tmp_path


def test_conversations_and_single_questions(folder, monkeypatch, capsys):
    run_tool_here(monkeypatch, TOOL, folder)
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts == dict(
        train=dict(images=1, questions=3), test=dict(images=1, questions=2)
    )
    train, test = (
        LLaVAInstructDataset(f'{split}.json', data_root=str(folder))
        for split in ('train', 'test')
    )
    assert train[0]['turns'] == [
        ('<image>\nwhat is left of the bin?', 'garbage bin'),
        ('what are close to the wall?', 'book, tape dispenser'),
        ('what is the image made of?', 'wood'),
    ]
    assert [test[i]['turns'] for i in range(2)] == [
        [('<image>\nwhat is on the table?', 'lamp')],
        [('<image>\nhow many are?', '3')],
    ]


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('all_qa_pairs.txt', 'what is it ?\nlamp\n', 'names 0 images'),
        ('all_qa_pairs.txt', 'in image1 and image2 ?\na\n', 'names 2 images'),
        ('all_qa_pairs.txt', 'what is in the image1 ?\n', 'has no answer'),
        ('all_qa_pairs.txt', 'what is in the image9 ?\na\n', 'no split has'),
        ('test_images_list.txt', 'image1\n', 'both splits have'),
    ],
)
def test_what_is_not_whole(folder, monkeypatch, capsys, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(SystemExit):
        run_tool_here(monkeypatch, TOOL, folder)
    assert message in capsys.readouterr().err
