"""Student: VMamba-T of the paper's Table 1, 224 pixels, 1000 classes.

The table's 15 layers and 40.5 M parameters fit VMamba's second version with
2-2-9-2 blocks, 16 states and mixers twice as wide as the tokens; other
readings are presets of ``VMamba``, too (``transmamba-tiny-*``).
"""

student = dict(
    type='ImageClassifier',
    backbone=dict(
        type='transmamba.VMamba',
        arch='transmamba-tiny',
        img_size=224,
        drop_path_rate=0.0,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
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
