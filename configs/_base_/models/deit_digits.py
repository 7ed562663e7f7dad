"""The small DeiT for 16x16 images, as the model to train."""

_base_ = '../teachers/deit_digits.py'

model = _base_.teacher
