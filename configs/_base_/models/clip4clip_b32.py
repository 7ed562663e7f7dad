"""CLIP4Clip, mean pooling (meanP), on OpenAI's ViT-B/32."""

model = dict(
    type='transmamba.VideoTextRetriever',
    backbone=dict(
        type='transmamba.PerFrame',
        # CLIP4Clip freezes the embeddings of images.
        model=dict(
            type='transmamba.CLIPVisionTower',
            arch='ViT-B/32',
            frozen_stages=0,
        ),
    ),
    text_encoder=dict(type='transmamba.CLIPTextTower', arch='ViT-B/32'),
    head=dict(type='transmamba.MeanPooling', embed_dims=512),
    init_cfg=dict(type='Pretrained', checkpoint='data/clip/ViT-B-32.pt'),
)
