"""Student: PMamba-B of the paper's Table 1, 224 pixels, 1000 classes."""

_base_ = './classifier_224.py'

model = dict(
    backbone=dict(type='transmamba.PlainMamba', arch='pmamba-base'),
    head=dict(in_channels=768),
)
