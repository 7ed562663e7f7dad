"""What all classifiers of 224 pixels and 1000 classes share.

A student's file adds its backbone and how wide the head's input is.
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(img_size=224, drop_path_rate=0.0),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
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
