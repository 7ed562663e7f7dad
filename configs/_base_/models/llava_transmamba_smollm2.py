"""The student: six layers of SmolLM2-135M's width, the ViT as it is."""

model = dict(
    type='transmamba.TransLlava',
    vision_encoder=dict(
        type='TIMMBackbone',
        model_name='vit_tiny_patch16_224',
        img_size=128,
        checkpoint_path='data/weights/vit-tiny_128.pth',
    ),
    projector=dict(type='transmamba.MLPProjector', in_channels=192),
    lang_encoder=dict(
        type='transmamba.TransMambaLM',
        arch=dict(
            embed_dims=576, num_layers=6, vocab_size=49152, ffn_dims=1536
        ),
    ),
    tokenizer=dict(
        type='transmamba.CausalTokenizer',
        path='data/weights/SmolLM2-135M-Instruct',
    ),
    prompt_tmpl='{question} {answer}',
    frozen=(),
    generation_cfg=dict(max_new_tokens=8),
)
