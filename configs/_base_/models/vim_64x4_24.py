"""Student: a Vim as wide and deep as the small ViT, with FFNs, 24 pixels."""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='transmamba.VisionMamba',
        arch=dict(
            embed_dims=64,
            num_layers=4,
            expand=1,
            ffn_ratio=4,
            norm_cfg=dict(type='LN', eps=1e-6),
        ),
        img_size=24,
        patch_size=4,
        mixer_cfg=dict(d_state=8),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
