# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tiny random models of transformers, and students of theirs."""

import pytest
import torch
from torch import nn

from transmamba_mm.models import TransMambaLM

VOCAB, DIMS = 23, 16


def _built(name: str, seed: int, **settings) -> nn.Module:
    transformers = pytest.importorskip('transformers')
    config = getattr(transformers, f'{name}Config')(**settings)
    kind = getattr(transformers, f'{name}ForCausalLM')
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_llama(name: str = 'Llama', **settings) -> nn.Module:
    """Three layers of width 16, with 4 heads of which 2 have keys."""
    options = dict(
        vocab_size=VOCAB,
        hidden_size=DIMS,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _built(name, 0, **{**options, **settings})


def tiny_mamba(name: str = 'Mamba', **settings) -> nn.Module:
    """Four layers of width 16."""
    options = dict(
        vocab_size=VOCAB,
        hidden_size=DIMS,
        state_size=4,
        num_hidden_layers=4,
        expand=2,
        time_step_rank=3,
        intermediate_size=32,
    )
    return _built(name, 1, **{**options, **settings})


def tiny_student(**settings) -> TransMambaLM:
    """Two layers of width 16, FFN 24."""
    arch = dict(embed_dims=DIMS, num_layers=2, vocab_size=VOCAB, ffn_dims=24)
    arch.update(settings.pop('arch', {}))
    torch.manual_seed(2)
    return TransMambaLM(arch, **settings)
