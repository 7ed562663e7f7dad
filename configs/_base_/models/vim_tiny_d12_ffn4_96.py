"""Student: a ViM of ViT-Ti's width and depth, with FFNs, 96 pixels."""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='transmamba.VisionMamba',
        arch=dict(
            embed_dims=192,
            num_layers=12,
            expand=1,
            ffn_ratio=4,
            norm_cfg=dict(type='LN', eps=1e-6),
        ),
        img_size=96,
        patch_size=16,
        mixer_cfg=dict(d_state=8),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=200,
        in_channels=192,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
