"""Teacher: a small LLaVA, of a ViT and a LLaMA, for images of 36 pixels."""

_vision_encoder = dict(
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
)
teacher = dict(
    type='transmamba.TransLlava',
    vision_encoder=_vision_encoder,
    projector=dict(type='transmamba.MLPProjector', in_channels=64),
    lang_encoder=dict(
        type='transmamba.TransformersCausalLM',
        name_or_path=dict(
            model_type='llama',
            vocab_size=258,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        ),
        load_pretrained=False,
    ),
    tokenizer=dict(type='transmamba.ByteTokenizer'),
    prompt_tmpl='{question} {answer}',
    frozen=(),
    generation_cfg=dict(max_new_tokens=10),
)
# What a student has of it beside what subcloning gives its language model.
subcloning = dict(
    copies=dict(vision_encoder='vision_encoder', projector='projector')
)
