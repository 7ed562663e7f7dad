"""Vim-tiny as released, 224 pixels, 1000 classes.

With 100 classes it has 7.0 M parameters, as ViM-T of TransMamba's Table 1.
"""

_base_ = './classifier_224.py'

model = dict(
    backbone=dict(
        type='transmamba.VisionMamba',
        arch='tiny',
        patch_size=16,
        class_token='middle',
        out_type='cls_token',
    ),
    head=dict(
        in_channels=192,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
)
