"""DeiT-B, patches of 16 pixels, images of 224, as the model to train."""

_base_ = '../teachers/deit_base.py'

model = _base_.teacher
