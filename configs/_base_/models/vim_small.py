"""Vim-small as released, 224 pixels, 1000 classes.

With 100 classes it has 25.5 M parameters, as ViM-S of TransMamba's Table 1.
"""

_base_ = './vim_tiny.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=384))
