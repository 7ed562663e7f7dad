"""Vim-small as released, 224 pixels, 1000 classes.

With 100 classes it has 25.5 M parameters, as ViM-S of TransMamba's Table 1.
"""

_base_ = './classifier_224.py'

model = dict(
    backbone=dict(type='transmamba.VisionMamba', arch='small'),
    head=dict(
        in_channels=384,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
)
