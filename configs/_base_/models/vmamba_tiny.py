"""VMamba-T[s1l8] as released, 224 pixels, 1000 classes."""

_base_ = './vmamba_transmamba_tiny.py'

model = dict(backbone=dict(arch='tiny-s1l8', drop_path_rate=0.2))
