"""Student: a PlainMamba of ViT-Ti's width and depth, with FFNs, 96 pixels.

Light mixers (8 states, no expansion, 3x3 convolutions), so that it trains on
a CPU; the patch embedding is a ViT's, so that it is subcloned.
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='transmamba.PlainMamba',
        arch='pmamba-tiny',
        img_size=96,
        patch_size=16,
        stem='patch',
        ffn_ratio=4,
        mixer_cfg=dict(d_state=8, expand=1, conv_size=3),
        init_cfg=[],
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=200,
        in_channels=192,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
