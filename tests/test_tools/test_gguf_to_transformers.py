# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A GGUF file becomes a folder that the models read."""

import numpy as np
import pytest
import torch
from helpers import run_tool_here

TOOL = 'model_converters/gguf_to_transformers'
WIDTH, HIDDEN, VOCAB = 64, 96, 70


def write_llama(path):
    """A LLaMA of one layer with a byte-pair vocabulary, as llama.cpp has."""
    gguf = pytest.importorskip('gguf')
    out = gguf.GGUFWriter(path, 'llama')
    out.add_context_length(32)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(4)
    out.add_head_count_kv(2)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // 4)
    out.add_vocab_size(VOCAB)
    tokens = ['<s>', '</s>', *map(chr, range(65, 65 + VOCAB - 2))]
    out.add_tokenizer_model('gpt2')
    out.add_tokenizer_pre('default')
    out.add_token_list(tokens)
    out.add_token_scores([0.0] * VOCAB)
    out.add_token_types([3, 3, *[1] * (VOCAB - 2)])
    out.add_token_merges([])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    draw = np.random.default_rng(0)
    made = {
        'token_embd': (VOCAB, WIDTH),
        'output_norm': (WIDTH,),
        'blk.0.attn_norm': (WIDTH,),
        'blk.0.ffn_norm': (WIDTH,),
        'blk.0.attn_q': (WIDTH, WIDTH),
        'blk.0.attn_k': (WIDTH // 2, WIDTH),
        'blk.0.attn_v': (WIDTH // 2, WIDTH),
        'blk.0.attn_output': (WIDTH, WIDTH),
        'blk.0.ffn_gate': (HIDDEN, WIDTH),
        'blk.0.ffn_up': (HIDDEN, WIDTH),
        'blk.0.ffn_down': (WIDTH, HIDDEN),
    }
    values = {
        name: draw.normal(size=shape).astype(np.float32)
        for name, shape in made.items()
    }
    for name, value in values.items():
        out.add_tensor(f'{name}.weight', value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return values


def test_weights_and_tokenizer_are_read(tmp_path, monkeypatch):
    pytest.importorskip('transformers')
    pytest.importorskip('accelerate')
    from transmamba_mm.models import CausalTokenizer, TransformersCausalLM

    values = write_llama(tmp_path / 'llama.gguf')
    out = tmp_path / 'llama'
    run_tool_here(monkeypatch, TOOL, tmp_path / 'llama.gguf', out)
    model = TransformersCausalLM(str(out))
    assert model.vocab_size == VOCAB
    found = model.model.state_dict()
    for name, own in (
        ('token_embd', 'embed_tokens'),
        ('blk.0.ffn_down', 'layers.0.mlp.down_proj'),
        ('blk.0.attn_output', 'layers.0.self_attn.o_proj'),
    ):
        weight = torch.from_numpy(values[name])
        torch.testing.assert_close(found[f'model.{own}.weight'], weight)
    tokenizer = CausalTokenizer(str(out))
    assert tokenizer.eos_token_id == 1
    assert tokenizer.decode(tokenizer.encode('ABBA')) == 'ABBA'


def test_a_missing_file_is_named(tmp_path, monkeypatch, capsys):
    pytest.importorskip('transformers')
    with pytest.raises(SystemExit):
        run_tool_here(monkeypatch, TOOL, tmp_path / 'no.gguf', tmp_path)
    assert 'no.gguf' in capsys.readouterr().err
