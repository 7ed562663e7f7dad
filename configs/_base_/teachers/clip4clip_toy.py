"""Teacher: a small CLIP4Clip, 8 frames of 32 pixels, 16 patches each."""

_text_encoder = dict(
    type='transmamba.CLIPTextTower',
    arch=dict(embed_dims=64, num_layers=2, num_heads=4, out_channels=64),
    vocab_size=599,
    context_length=24,
)
teacher = dict(
    type='transmamba.VideoTextRetriever',
    backbone=dict(
        type='transmamba.PerFrame',
        model=dict(
            type='transmamba.CLIPVisionTower',
            arch=dict(
                embed_dims=64,
                num_layers=4,
                num_heads=4,
                patch_size=8,
                out_channels=64,
            ),
            img_size=32,
        ),
    ),
    text_encoder=_text_encoder,
    head=dict(
        type='transmamba.SequenceTransformer',
        embed_dims=64,
        num_layers=2,
        num_heads=4,
        max_frames=8,
    ),
)
# What the student has of the teacher beside its vision tower.
subcloning = dict(
    teacher_backbone='backbone.model',
    copies=dict(
        text_encoder='text_encoder',
        **{
            f'head.{part}': f'head.{part}'
            for part in (
                'transformer',
                'frame_position_embeddings',
                'logit_scale',
            )
        },
    ),
)
