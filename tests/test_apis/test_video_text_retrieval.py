# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Search for videos by text."""

import copy

import numpy as np
import pytest
import torch
from helpers import ROOT, run_tool_here
from mmengine.config import Config
from PIL import Image
from retrieval_models import FRAMES, VOCAB, WORDS, build_random, mamba_cfg

from transmamba_mm.apis import VideoTextRetrievalInferencer
from transmamba_mm.apis.video_text_retrieval import VideoIndex
from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.datasets.transforms import UnreadableVideoError
from transmamba_mm.registry import TOKENIZER

QUERIES = ['a red circle', 'nothing of this']


@TOKENIZER.register_module()
class LetterTokenizer:
    """A token for each letter."""

    def __call__(self, text, max_words):
        inside = [1 + ord(x) % (VOCAB - 3) for x in text][: max_words - 2]
        return [VOCAB - 2, *inside, VOCAB - 1]


def pipeline():
    return [
        dict(type='transmamba.LoadVideo', max_frames=FRAMES),
        dict(
            type='transmamba.TokenizeText',
            tokenizer=dict(type='transmamba.LetterTokenizer'),
            max_words=WORDS,
        ),
        dict(type='transmamba.PackVideoText'),
    ]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three videos as folders of frames, of two, four and four frames."""
    root = tmp_path_factory.mktemp('clips')
    rng = np.random.default_rng(0)
    for name, count in (('a', 2), ('b', 4), ('c', 4)):
        (root / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f'{i}.png')
    (root / 'notes.txt').write_text('no video')
    return root


@pytest.fixture
def model():
    built = build_random(mamba_cfg())
    dataset = dict(type='transmamba.VideoTextDataset', pipeline=pipeline())
    built._config = Config(
        dict(model=mamba_cfg(), test_dataloader=dict(dataset=dataset))
    )
    return built


def names(result):
    return [x['video'][-1] for x in result['predictions']]


def test_scores_are_those_of_the_model(model, folder):
    search = VideoTextRetrievalInferencer(model, str(folder), batch_size=2)
    assert [x[-1] for x in search.index.paths] == ['a', 'b', 'c']
    found = search(QUERIES, topk=2)
    assert [x['text'] for x in found] == QUERIES
    # One by one, by the pipeline as a test runs it.
    whole = search.pipeline
    videos = []
    for name in 'abc':
        sample = whole(dict(video_path=str(folder / name)))
        batch = dict(
            inputs=sample['inputs'][None],
            data_samples=[sample['data_samples']],
        )
        (out,) = model.test_step(batch)
        videos.append(out.video_embedding)
    tokens = torch.zeros(len(QUERIES), WORDS, dtype=torch.long)
    for row, text in zip(tokens, QUERIES):
        ids = LetterTokenizer()(text, WORDS)
        row[: len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        texts = model.encode_texts(tokens)
    cosines = texts @ torch.stack(videos).T
    for row, result in zip(cosines, found):
        best = row.argsort(descending=True)[:2]
        assert names(result) == ['abc'[i] for i in best]
        scores = [x['score'] for x in result['predictions']]
        assert scores == pytest.approx(row[best].tolist(), abs=1e-5)
    assert (
        search(QUERIES[0], topk=99)[0]['predictions'][:2]
        == (found[0]['predictions'])
    )


def test_a_saved_index_needs_the_same_weights(model, folder, tmp_path):
    search = VideoTextRetrievalInferencer(model, str(folder))
    search.save_index(tmp_path / 'clips.index')
    again = VideoTextRetrievalInferencer(model, index=tmp_path / 'clips.index')
    assert again(QUERIES) == search(QUERIES)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(CheckpointError, match='other weights'):
        VideoTextRetrievalInferencer(other, index=tmp_path / 'clips.index')
    for changed in (
        dict(data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3)),
        dict(text_encoder=dict(mamba_cfg()['text_encoder'], act='gelu')),
    ):
        other = copy.deepcopy(model)
        other._config.model = dict(mamba_cfg(), **changed)
        with pytest.raises(CheckpointError, match='other weights or settings'):
            VideoTextRetrievalInferencer(other, index=tmp_path / 'clips.index')
    # A distillation's student is the same model, wherever weights come from.
    other = copy.deepcopy(model)
    student = dict(mamba_cfg(), init_cfg=dict(type='Pretrained'))
    other._config.model = dict(architecture=student, teacher=dict())
    VideoTextRetrievalInferencer(other, index=tmp_path / 'clips.index')
    (tmp_path / 'text').write_text('no index')
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    for name in ('text', 'weights.pth'):
        with pytest.raises(ValueError, match='is no index of videos'):
            VideoIndex.load(tmp_path / name)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_videos_that_cannot_be_read(model, folder, tmp_path, num_workers):
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    paths = [str(folder / 'b'), str(tmp_path / 'broken.mp4')]
    options = dict(num_workers=num_workers)
    with pytest.raises(UnreadableVideoError, match=r'broken\.mp4'):
        VideoTextRetrievalInferencer(model, paths, **options)
    search = VideoTextRetrievalInferencer(
        model, paths, on_error='skip', **options
    )
    assert search.index.paths == paths[:1]
    search.on_error = 'skip'
    with pytest.raises(ValueError, match='no video to be found'):
        search.index_videos(paths[1:])


def test_mistakes(model):
    search = VideoTextRetrievalInferencer(model)
    with pytest.raises(ValueError, match='no video is indexed'):
        search(QUERIES)
    with pytest.raises(ValueError, match='on_error'):
        VideoTextRetrievalInferencer(model, on_error='ignore')
    model._config.test_dataloader.dataset.pipeline = pipeline()[::2]
    with pytest.raises(ValueError, match='TokenizeText'):
        VideoTextRetrievalInferencer(model)


def test_demo_writes_a_page(model, folder, tmp_path, monkeypatch, capsys):
    config = Config(
        dict(
            default_scope='mmpretrain',
            model=mamba_cfg(),
            test_dataloader=dict(
                dataset=dict(
                    type='transmamba.VideoTextDataset', pipeline=pipeline()
                )
            ),
        )
    )
    config.dump(tmp_path / 'config.py')
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    command = [str(tmp_path / 'config.py'), str(tmp_path / 'weights.pth')]
    command += ['--query', 'circle <b>', '--topk', '2']
    page, index = tmp_path / 'found.html', str(tmp_path / 'index')
    monkeypatch.chdir(ROOT)
    for source in (
        ['--videos', str(folder), '--save-index', index],
        ['--index', index],
    ):
        run_tool_here(
            monkeypatch,
            '../demo/retrieval_demo',
            *(*command, *source, '--out', str(page)),
        )
        text = page.read_text()
        assert text.count('data:image/webp;base64,') == 2
        assert 'circle &lt;b&gt;' in text and '<b>' not in text
        assert 'http' not in text
    printed = capsys.readouterr().out.splitlines()
    assert printed.count('circle <b>') == 2


def test_a_checkpoint_that_does_not_fit(model, tmp_path):
    """It would rank by random weights."""
    state = model.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith('backbone.')}
    torch.save(state, tmp_path / 'part.pth')
    with pytest.raises(CheckpointError, match='is of another model'):
        VideoTextRetrievalInferencer(
            model, pretrained=str(tmp_path / 'part.pth')
        )
