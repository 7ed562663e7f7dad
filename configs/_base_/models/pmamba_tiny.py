"""Student: PMamba-T of the paper's Table 1, 224 pixels, 1000 classes.

The table's parameter counts hold for blocks without FFN and the convolutional
stem, which is what this is; the paper's text describes an FFN, which
``ffn_ratio=4`` adds.
"""

_base_ = './classifier_224.py'

model = dict(
    backbone=dict(
        type='transmamba.PlainMamba',
        arch='pmamba-tiny',
        patch_size=16,
        stem='conv',
        ffn_ratio=0,
    ),
    head=dict(in_channels=192),
)
