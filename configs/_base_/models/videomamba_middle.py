"""VideoMamba-M as released for images, 224 pixels, 1000 classes."""

_base_ = './videomamba_tiny.py'

model = dict(backbone=dict(arch='middle'), head=dict(in_channels=576))
