"""DeiT-S, patches of 16 pixels, images of 224, as the model to train."""

_base_ = '../teachers/deit_small.py'

model = _base_.teacher
