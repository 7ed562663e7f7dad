"""Teacher: ViT-Ti on each frame, MiniLM on captions, means of frames.

Both towers are pretrained, but not for each other. MiniLM, of sentences, is
frozen: teacher and student have the same.
"""

_text_encoder = dict(
    type='transmamba.TransformersTextEncoder',
    path='data/weights/all-MiniLM-L6-v2',
)
_head = dict(
    type='transmamba.MeanPooling',
    embed_dims=256,
    video_channels=192,
    text_channels=384,
)
teacher = dict(
    type='transmamba.VideoTextRetriever',
    backbone=dict(
        type='transmamba.PerFrame',
        model=dict(
            type='TimmClassifier',
            model_name='vit_tiny_patch16_224',
            img_size=96,
            num_classes=0,
        ),
    ),
    text_encoder=_text_encoder,
    head=_head,
)
# What the student has of the teacher beside its vision tower.
subcloning = dict(
    teacher_backbone='backbone.model',
    copies=dict(
        text_encoder='text_encoder',
        **{
            f'head.{part}': f'head.{part}'
            for part in ('video_proj', 'text_proj', 'logit_scale')
        },
    ),
)
