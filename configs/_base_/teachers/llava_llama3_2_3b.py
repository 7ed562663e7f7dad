"""LLaVA-1.5 on LLaMA-3.2-3B: CLIP ViT-L/14 at 336 pixels, a 2-layer MLP.

The settings of the language model are those of its ``config.json``, so that a
model can be planned and built without its 6.4 GB; a checkpoint gives the
weights.
"""

_clip = dict(
    type='transmamba.CLIPVisionTower',
    arch='ViT-L/14',
    img_size=336,
    out_layer=-2,
)
_llama = dict(
    type='transmamba.TransformersCausalLM',
    name_or_path=dict(
        model_type='llama',
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=dict(
            rope_type='llama3',
            factor=32.0,
            high_freq_factor=4.0,
            low_freq_factor=1.0,
            original_max_position_embeddings=8192,
        ),
        tie_word_embeddings=True,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    load_pretrained=False,
    dtype='bfloat16',
)
teacher = dict(
    type='transmamba.TransLlava',
    vision_encoder=_clip,
    projector=dict(type='transmamba.MLPProjector', in_channels=1024),
    lang_encoder=_llama,
    # Files of the tokenizer alone will do.
    tokenizer=dict(
        type='transmamba.CausalTokenizer', path='checkpoints/Llama-3.2-3B'
    ),
    prompt_tmpl='USER: {question} ASSISTANT: {answer}',
    max_length=2048,
)
