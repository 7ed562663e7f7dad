"""VideoMamba-Ti as released for images, 224 pixels, 1000 classes."""

_base_ = './classifier_224.py'

model = dict(
    backbone=dict(
        type='transmamba.VideoMamba',
        arch='tiny',
        patch_size=16,
        out_type='cls_token',
    ),
    head=dict(
        in_channels=192,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
)
