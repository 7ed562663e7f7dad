"""Teacher: DeiT-S, patches of 16 pixels, images of 224, 1000 classes."""

_base_ = './deit_tiny.py'

teacher = dict(backbone=dict(arch='deit-small'), head=dict(in_channels=384))
# mmpretrain's model zoo: 80.69 % top-1.
teacher_weights = (
    'https://download.openmmlab.com/mmclassification/v0/deit/'
    'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
)
