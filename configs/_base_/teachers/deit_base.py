"""Teacher: DeiT-B, patches of 16 pixels, images of 224, 1000 classes."""

_base_ = './deit_tiny.py'

teacher = dict(backbone=dict(arch='deit-base'), head=dict(in_channels=768))
# mmpretrain's model zoo: 81.79 % top-1.
teacher_weights = (
    'https://download.openmmlab.com/mmclassification/v0/deit/'
    'deit-base_3rdparty_pt-16xb64_in1k_20211124-6f40c188.pth'
)
