"""Student: a PlainMamba half as wide as the small DeiT, with its whole head.

A neck lifts features to the teacher's width.
"""

_base_ = './pmamba_digits.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=32)),
    neck=dict(
        type='LinearNeck', in_channels=32, out_channels=64, norm_cfg=None
    ),
)
