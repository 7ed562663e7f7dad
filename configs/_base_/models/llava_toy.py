"""A small student: a TransMambaLM with width, FFN and head of its teacher."""

model = dict(
    type='transmamba.TransLlava',
    vision_encoder=dict(
        type='transmamba.CLIPVisionTower',
        arch=dict(
            embed_dims=64,
            num_layers=2,
            num_heads=4,
            patch_size=12,
            out_channels=64,
        ),
        img_size=36,
        out_layer=-1,
    ),
    projector=dict(type='transmamba.MLPProjector', in_channels=64),
    lang_encoder=dict(
        type='transmamba.TransMambaLM',
        arch=dict(embed_dims=64, num_layers=4, vocab_size=258, ffn_dims=192),
        mixer_cfg=dict(d_state=8),
    ),
    tokenizer=dict(type='transmamba.ByteTokenizer'),
    prompt_tmpl='{question} {answer}',
    frozen=(),
    generation_cfg=dict(max_new_tokens=10),
)
