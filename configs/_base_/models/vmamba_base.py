"""VMamba-B[s1l20] as released, 224 pixels, 1000 classes."""

_base_ = './vmamba_tiny.py'

model = dict(
    backbone=dict(arch='base-s1l20', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
