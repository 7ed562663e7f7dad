"""VMamba-T of the first version, 224 pixels, 1000 classes."""

_base_ = './vmamba_tiny.py'

model = dict(backbone=dict(arch='vanilla-tiny', drop_path_rate=0.2))
