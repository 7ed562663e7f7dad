"""VMamba-S[s1l20] as released, 224 pixels, 1000 classes."""

_base_ = './vmamba_tiny.py'

model = dict(backbone=dict(arch='small-s1l20', drop_path_rate=0.3))
