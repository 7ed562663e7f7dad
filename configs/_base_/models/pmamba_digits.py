"""Student: a PlainMamba as wide and deep as the small DeiT, with FFNs."""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='transmamba.PlainMamba',
        arch=dict(embed_dims=64, num_layers=4),
        img_size=16,
        patch_size=4,
        stem='patch',
        ffn_ratio=4,
        mixer_cfg=dict(d_state=8, expand=1, conv_size=3),
        # PyTorch's initialisation: 0.02 is too small for 64 channels.
        init_cfg=[],
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
