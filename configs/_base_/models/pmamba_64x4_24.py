"""Student: a PlainMamba as wide and deep as the small ViT, 24 pixels."""

_base_ = './pmamba_digits.py'

model = dict(backbone=dict(img_size=24))
