"""Student: PMamba-B of the paper's Table 1, 224 pixels, 1000 classes."""

_base_ = './pmamba_tiny.py'

model = dict(backbone=dict(arch='pmamba-base'), head=dict(in_channels=768))
