"""VideoMamba-S as released for images, 224 pixels, 1000 classes."""

_base_ = './videomamba_tiny.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=384))
