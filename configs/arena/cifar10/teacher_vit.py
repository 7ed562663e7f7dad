"""The teacher: a small ViT on 45,000 training images of CIFAR-10.

Run::

    python tools/train.py configs/arena/cifar10/teacher_vit.py
"""

_base_ = [
    '../../_base_/teachers/vit_64x4_24.py',
    '../../_base_/datasets/cifar10_24_held-out.py',
    '../../_base_/schedules/arena_adamw_cosine.py',
    '../../_base_/default_runtime.py',
]

model = _base_.teacher

optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=0.45),
    dict(_base_.param_scheduler[1], begin=0.45, end=9),
]
train_cfg = dict(max_epochs=9)
