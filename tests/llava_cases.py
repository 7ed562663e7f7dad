# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tiny models that answer questions, and batches for them."""

import copy

import pytest
import torch
from mmpretrain.structures import DataSample
from torch import Tensor

from transmamba_mm.models import TransLlava
from transmamba_mm.registry import MODELS

PATCHES = 4

VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(
        embed_dims=8, num_layers=3, num_heads=2, feedforward_channels=16
    ),
    img_size=16,
    patch_size=8,
    out_type='raw',
    out_indices=-2,
    final_norm=False,
)
MAMBA = dict(
    type='transmamba.TransMambaLM',
    arch=dict(embed_dims=16, num_layers=2, vocab_size=258, ffn_dims=24),
    mixer_cfg=dict(d_state=4),
)
CROSS = dict(MAMBA, cross_layers=(1,), cross_cfg=dict(bidirectional_kv=True))
LLAMA = dict(
    type='transmamba.TransformersCausalLM',
    name_or_path=dict(
        model_type='llama',
        vocab_size=258,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    ),
    load_pretrained=False,
)
LANGUAGE_MODELS = dict(mamba=MAMBA, cross=CROSS, llama=LLAMA)


def config(language: str = 'mamba', **settings) -> dict:
    return copy.deepcopy(
        dict(
            dict(
                type='transmamba.TransLlava',
                vision_encoder=VIT,
                projector=dict(type='transmamba.MLPProjector', in_channels=8),
                lang_encoder=LANGUAGE_MODELS[language],
                tokenizer=dict(type='transmamba.ByteTokenizer'),
                prompt_tmpl='Q:{question} A: {answer}',
                generation_cfg=dict(max_new_tokens=5),
            ),
            **settings,
        )
    )


def build(language: str = 'mamba', double: bool = True, **settings):
    """A model all of whose parameters are drawn, in float64 or float32."""
    if language == 'llama':
        pytest.importorskip('transformers')
    torch.manual_seed(0)
    model: TransLlava = MODELS.build(config(language, **settings))
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return (model.double() if double else model).eval()


def pictures(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=generator)


def batch(double: bool = True) -> tuple[list[Tensor], list[DataSample]]:
    """One image, two of them in two turns, and none."""
    images = [pictures(1, 1), pictures(2, 2), pictures(0)]
    turns = [
        [('<image>\nwhat?', 'fox')],
        [('a <image> b <image>', 'yes'), ('and?', 'no, never')],
        [('one and one', 'two')],
    ]
    samples = [DataSample(turns=each) for each in turns]
    return [x.double() if double else x for x in images], samples


def close(a: Tensor, b: Tensor, double: bool = True) -> None:
    tolerance = 1e-9 if double else 1e-5
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
