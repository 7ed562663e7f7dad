"""Vim-tiny as released, 224 pixels, 1000 classes.

With 100 classes it has 7.0 M parameters, as ViM-T of TransMamba's Table 1.
"""

student = dict(
    type='ImageClassifier',
    backbone=dict(
        type='transmamba.VisionMamba',
        arch='tiny',
        img_size=224,
        patch_size=16,
        class_token='middle',
        out_type='cls_token',
        drop_path_rate=0.0,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=192,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
    # Batch augmentation, in distillation too: teacher and student see the
    # same mixed images.
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)
