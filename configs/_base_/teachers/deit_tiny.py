"""Teacher: DeiT-Ti, patches of 16 pixels, images of 224, 1000 classes."""

teacher = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch='deit-tiny',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.0,
    ),
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=1000,
        in_channels=192,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
    ),
    # For its fine-tuning: a new head starts as mmpretrain's DeiT does.
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)
# mmpretrain's model zoo: 74.5 % top-1.
teacher_weights = (
    'https://download.openmmlab.com/mmclassification/v0/deit/'
    'deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth'
)
