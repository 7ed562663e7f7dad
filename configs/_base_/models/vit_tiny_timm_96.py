"""timm's ViT-Ti/16 at 96 pixels, as the model to train."""

_base_ = '../teachers/vit_tiny_timm_96.py'

model = _base_.teacher
