"""Student: PMamba-T of the paper's Table 1, 224 pixels, 1000 classes.

The table's parameter counts hold for blocks without FFN and the convolutional
stem, which is what this is; the paper's text describes an FFN, which
``ffn_ratio=4`` adds.
"""

student = dict(
    type='ImageClassifier',
    backbone=dict(
        type='transmamba.PlainMamba',
        arch='pmamba-tiny',
        img_size=224,
        patch_size=16,
        stem='conv',
        ffn_ratio=0,
        drop_path_rate=0.0,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=192,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
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
