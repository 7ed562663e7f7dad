# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Text encoders of transformers, on a tiny BERT of random weights."""

import pytest
import torch
from retrieval_models import build_random, mamba_cfg, video_batch

from transmamba_mm.registry import MODELS, TOKENIZER

transformers = pytest.importorskip('transformers')

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'red', 'circle']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('bert')
    (root / 'vocab.txt').write_text('\n'.join(WORDS))
    tokenizer = transformers.BertTokenizer(str(root / 'vocab.txt'))
    tokenizer.save_pretrained(root)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(root)
    return str(root)


def encoder(folder, **kwargs):
    config = dict(type='transmamba.TransformersTextEncoder', path=folder)
    return MODELS.build({**config, **kwargs})


def test_tokens(folder):
    tokenizer = TOKENIZER.build(
        dict(type='transmamba.TransformersTokenizer', path=folder)
    )
    found = tokenizer('a red circle', 8)
    assert [WORDS[i] for i in found] == ['[CLS]', *WORDS[5:], '[SEP]']
    assert tokenizer('a red circle', 3) == [found[0], found[1], found[-1]]


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_features_are_those_of_the_model_without_padding(folder, pooling):
    model = encoder(folder, pooling=pooling).eval()
    bert = transformers.BertModel.from_pretrained(folder).eval()
    rows = [torch.tensor([2, 5, 6, 3]), torch.tensor([2, 7, 3])]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found = model(padded)
    for row, feature in zip(rows, found):
        states = bert(row[None]).last_hidden_state[0]
        wanted = states.mean(0) if pooling == 'mean' else states[0]
        torch.testing.assert_close(feature, wanted, rtol=1e-5, atol=1e-6)


def test_frozen_in_a_retriever(folder):
    config = mamba_cfg()
    config['text_encoder'] = dict(
        type='transmamba.TransformersTextEncoder', path=folder
    )
    config['head']['text_channels'] = 16
    model = build_random(config).train()
    assert not model.text_encoder.model.training
    model.loss(*video_batch())['loss'].backward()
    assert all(p.grad is None for p in model.text_encoder.parameters())
    assert model.head.text_proj.weight.grad.abs().max() > 0
    config['text_encoder']['frozen'] = False
    model = build_random(config).train()
    assert model.text_encoder.model.training
    model.loss(*video_batch())['loss'].backward()
    assert any(p.grad is not None for p in model.text_encoder.parameters())


def test_config_alone(folder):
    """Other weights than those of the folder: drawn, to be loaded later."""
    torch.manual_seed(1)
    loaded, drawn = encoder(folder), encoder(folder, pretrained=False)
    name = 'model.embeddings.word_embeddings.weight'
    assert not torch.equal(loaded.state_dict()[name], drawn.state_dict()[name])
    drawn.load_state_dict(loaded.state_dict(), strict=True)


def test_mistakes(folder, tmp_path):
    with pytest.raises(ValueError, match='pooling'):
        encoder(folder, pooling='max')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = '[MASK]'
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='pads with 4'):
        TOKENIZER.build(
            dict(type='transmamba.TransformersTokenizer', path=str(tmp_path))
        )
