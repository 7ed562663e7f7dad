# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""LLaMA (arXiv 2302.13971) and what is built like it, of transformers.

Queries, keys and values are projections of their own, of which those of keys
and values may be narrower (grouped queries). They have no role: the paper
copies all but them.
"""

from .base import TeacherFamily, register

_MODELS = 'transformers.models'

LLAMA = register(
    TeacherFamily(
        name='LLaMA',
        layers='layers.{}',
        signature='self_attn.o_proj.weight',
        outer={'embed_tokens': 'embed', 'norm': 'final_norm'},
        inner={
            'input_layernorm': 'mixer_norm',
            'self_attn.o_proj': 'mixer_out',
            'post_attention_layernorm': 'ffn_norm',
            'mlp.gate_proj': 'ffn_gate',
            'mlp.up_proj': 'ffn_in',
            'mlp.down_proj': 'ffn_out',
        },
        ignores=(
            r'self_attn\.[qkv]_proj\.(weight|bias)',
            r'(self_attn\.)?rotary_emb\.\w+',
        ),
        layer_classes=(
            f'{_MODELS}.llama.modeling_llama.LlamaDecoderLayer',
            f'{_MODELS}.mistral.modeling_mistral.MistralDecoderLayer',
            f'{_MODELS}.qwen2.modeling_qwen2.Qwen2DecoderLayer',
        ),
        around='model.',
        head=('^lm_head',),
        logits=('^lm_head',),
        mixer='self_attn',
        mixer_norm='input_layernorm',
        num_heads='',
    )
)
