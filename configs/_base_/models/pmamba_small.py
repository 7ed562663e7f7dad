"""Student: PMamba-S of the paper's Table 1, 224 pixels, 1000 classes."""

_base_ = './pmamba_tiny.py'

model = dict(backbone=dict(arch='pmamba-small'), head=dict(in_channels=384))
