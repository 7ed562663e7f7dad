"""Teacher: LLaVA of timm's ViT-Ti and SmolLM2-135M, a LLaMA of 30 layers."""

_vision_encoder = dict(
    type='TIMMBackbone',
    model_name='vit_tiny_patch16_224',
    img_size=128,
    checkpoint_path='data/weights/vit-tiny_128.pth',
)
_tokenizer = dict(
    type='transmamba.CausalTokenizer',
    path='data/weights/SmolLM2-135M-Instruct',
)
teacher = dict(
    type='transmamba.TransLlava',
    vision_encoder=_vision_encoder,
    projector=dict(type='transmamba.MLPProjector', in_channels=192),
    lang_encoder=dict(
        type='transmamba.TransformersCausalLM',
        name_or_path='data/weights/SmolLM2-135M-Instruct',
        load_pretrained=False,
    ),
    tokenizer=_tokenizer,
    prompt_tmpl='{question} {answer}',
    frozen=(),
    generation_cfg=dict(max_new_tokens=8),
)
# What a student has of it beside what subcloning gives its language model.
subcloning = dict(
    copies=dict(vision_encoder='vision_encoder', projector='projector')
)
