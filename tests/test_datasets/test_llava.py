# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Conversations about images: rows, samples, and broken ones."""

import json

import cv2
import numpy as np
import pytest
import torch
from helpers import tiny_runner
from mmengine.config import Config

from transmamba_mm.apis.verify import find_unreadable_samples
from transmamba_mm.datasets.transforms import PadToSquare
from transmamba_mm.registry import DATASETS

PIPELINE = [
    dict(
        type='transmamba.EachImage',
        transforms=[
            dict(type='LoadImageFromFile'),
            dict(type='transmamba.PadToSquare'),
            dict(
                type='Resize',
                scale=(16, 16),
                backend='pillow',
                interpolation='bicubic',
            ),
        ],
    ),
    dict(type='transmamba.PackConversation'),
]


def said(*texts):
    """Turns as the file has them, who asks first."""
    return [
        {'from': ('human', 'gpt')[i % 2], 'value': text}
        for i, text in enumerate(texts)
    ]


ROWS = [
    dict(id='one', image='a.png', conversations=said('<image>\nwhat?', 'fox')),
    dict(
        id='two',
        image=['a.png', 'b.png'],
        conversations=said('<image>, <image>', 'yes', 'and?', 'no'),
    ),
    dict(conversations=said('one and one', 'two', 'and?')),
]
BROKEN = [
    (dict(id='gone', image='c.png', conversations=said('a', 'b')), 'c.png'),
    (dict(id='mute', conversations=said('a')), 'there is no answer'),
    (dict(id='void', conversations=said('a', ' ')), "answer to 'a' is empty"),
    (dict(id='none'), 'conversations is no list'),
    (dict(id='odd', image=3.5, conversations=said('a', 'b')), 'image is no'),
    (
        dict(id='both', conversations=said('a', 'b')[:1] * 2),
        "from 'gpt' is due where 'a' is from 'human'",
    ),
    (
        dict(id='place', conversations=said('<image> a', 'b')),
        '1 x <image> in the questions, but 0 images',
    ),
    ('no row', 'no JSON object'),
]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('llava')
    (folder / 'images').mkdir()
    for name, size in (('a', (10, 20, 3)), ('b', (16, 8, 3))):
        image = np.random.RandomState(0).randint(0, 256, size, np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{name}.png'), image)
    (folder / 'images' / 'bad.png').write_bytes(b'no image')
    return folder


def make(root, rows, name='rows.json', **settings):
    text = json.dumps(rows)
    if name.endswith('l'):
        text = '\n'.join(x if x == '{"id' else json.dumps(x) for x in rows)
    (root / name).write_text(text)
    return DATASETS.build(config(root, name, **settings))


def config(root, name, **settings):
    return dict(
        type='transmamba.LLaVAInstructDataset',
        data_root=str(root),
        ann_file=name,
        data_prefix=dict(img='images'),
        pipeline=PIPELINE,
        **settings,
    )


@pytest.mark.parametrize('name', ['rows.json', 'rows.jsonl'])
def test_samples(root, name):
    dataset = make(root, ROWS, name)
    samples = [dataset[i] for i in range(len(dataset))]
    shapes = [tuple(x['inputs'].shape) for x in samples]
    assert shapes == [(1, 3, 16, 16), (2, 3, 16, 16), (0, 3, 1, 1)]
    assert samples[0]['inputs'].dtype == torch.uint8
    packed = [x['data_samples'] for x in samples]
    assert [x.id for x in packed] == ['one', 'two', 3]
    assert [x.turns for x in packed] == [
        [('<image>\nwhat?', 'fox')],
        [('<image>, <image>', 'yes'), ('and?', 'no')],
        [('one and one', 'two')],
    ]
    assert len(packed[1].img_paths) == 2


def test_questions_without_answers_are_for_tests(root):
    dataset = make(root, ROWS[2:], test_mode=True)
    turns = dataset[0]['data_samples'].turns
    assert turns == [('one and one', 'two'), ('and?', None)]


def test_an_answer_that_stands_first_is_left_out(root):
    row = dict(conversations=said('a', 'b', 'c', 'd')[1:])
    dataset = make(root, [row])
    assert dataset[0]['data_samples'].turns == [('c', 'd')]


@pytest.mark.parametrize(('row', 'text'), BROKEN)
def test_broken_rows_are_named(root, row, text):
    name = f"id '{row['id']}'" if isinstance(row, dict) else 'row 2'
    with pytest.raises(ValueError, match='1 of 2 rows') as caught:
        make(root, [ROWS[0], row])
    assert text in str(caught.value) and name in str(caught.value)


def test_broken_rows_are_skipped_and_named(root, monkeypatch):
    rows = [ROWS[0], *(row for row, _ in BROKEN), ROWS[2]]
    told = []
    monkeypatch.setattr(
        'transmamba_mm.datasets.skipping.print_log',
        lambda text, **_: told.append(text),
    )
    dataset = make(root, rows, on_error='skip')
    assert [dataset.get_data_info(i)['id'] for i in range(2)] == ['one', 10]
    assert len(dataset) == 2
    assert len(told) == 1 and '8 of 10 rows' in told[0]
    assert "id 'gone'" in told[0] and 'and 5 more' in told[0]
    with pytest.raises(ValueError, match='has no row to use'):
        make(root, [BROKEN[0][0]], on_error='skip')


def test_broken_files(root):
    with pytest.raises(ValueError, match='row 2: it is no JSON object'):
        make(root, [ROWS[0], '{"id'], 'rows.jsonl')
    for text, reason in (('[{', 'is no JSON'), ('{}', 'is no list of rows')):
        (root / 'broken.json').write_text(text)
        with pytest.raises(ValueError, match=reason):
            DATASETS.build(config(root, 'broken.json'))
    with pytest.raises(ValueError, match='on_error must be'):
        make(root, ROWS, on_error='ignore')


BAD = dict(id='bad', image='bad.png', conversations=said('a', 'b'))


def test_images_that_cannot_be_decoded(root):
    with pytest.raises(ValueError, match=r"bad\.png' cannot be read"):
        make(root, [BAD])[0]
    dataset = make(root, [BAD, ROWS[0]], on_error='skip')
    assert {dataset[0]['data_samples'].id for _ in range(3)} == {'one'}
    assert dataset.num_skipped == 1
    dataset = make(root, [BAD, ROWS[0]], on_error='skip', test_mode=True)
    assert len(dataset) == 1
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            train_dataloader=dict(dataset=config(root, 'rows.json')),
        )
    )
    bad, total = find_unreadable_samples(cfg, workers=1)
    assert [path.rsplit('/', 1)[-1] for path in bad] == ['bad.png']
    assert total == 2


def test_pad_to_square():
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    for turn in (lambda x: x, lambda x: x.swapaxes(0, 1)):
        found = PadToSquare(fill=(1, 2, 3))(dict(img=turn(image)))
        square = turn(found['img'])
        assert found['img'].shape == (5, 5, 3)
        assert found['img_shape'] == (5, 5)
        assert (square[1:3] == image).all()
        assert (square[[0, 3, 4]] == (1, 2, 3)).all()


def test_images_of_several_sizes_are_refused(root):
    each = dict(PIPELINE[0], transforms=PIPELINE[0]['transforms'][:1])
    (root / 'rows.json').write_text(json.dumps(ROWS))
    cfg = dict(config(root, 'rows.json'), pipeline=[each, PIPELINE[1]])
    dataset = DATASETS.build(cfg)
    with pytest.raises(ValueError, match='differ in size'):
        dataset[1]


def test_a_runner_trains_on_it(root, tmp_path):
    """Rows through loader and preprocessor into a loss that falls."""
    make(root, ROWS)
    model = dict(
        type='transmamba.TransLlava',
        vision_encoder=dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=8,
                num_layers=2,
                num_heads=2,
                feedforward_channels=16,
            ),
            img_size=16,
            patch_size=8,
            out_type='raw',
            out_indices=-2,
            final_norm=False,
        ),
        projector=dict(type='transmamba.MLPProjector', in_channels=8),
        lang_encoder=dict(
            type='transmamba.TransMambaLM',
            arch=dict(embed_dims=16, num_layers=2, vocab_size=258),
            cross_layers=(1,),
        ),
        tokenizer=dict(type='transmamba.ByteTokenizer'),
    )
    loader = dict(
        dataset=config(root, 'rows.json'),
        batch_size=3,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
    )
    runner = tiny_runner(
        tmp_path,
        model,
        max_epochs=15,
        train_dataloader=loader,
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=2e-2)),
    )
    runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert losses[-1] < 0.8 * losses[0]
