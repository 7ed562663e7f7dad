"""CLIP4Clip, mean pooling (meanP), on OpenAI's ViT-B/16."""

_base_ = './clip4clip_b32.py'

model = dict(
    backbone=dict(model=dict(arch='ViT-B/16')),
    text_encoder=dict(arch='ViT-B/16'),
    init_cfg=dict(checkpoint='data/clip/ViT-B-16.pt'),
)
