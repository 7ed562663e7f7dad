"""A small Vim on 500 images of each of the ten classes, 6 epochs.

Run::

    python tools/train.py configs/arena/cifar10/student_vim.py
"""

_base_ = [
    '../../_base_/models/vim_64x4_24.py',
    '../../_base_/datasets/cifar10_24_held-out.py',
    '../../_base_/schedules/arena_adamw_cosine.py',
    '../../_base_/default_runtime.py',
]

# 500 of the 4,500 images of each class.
train_dataloader = dict(dataset=dict(fraction=1 / 9))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=0.3),
    dict(_base_.param_scheduler[1], begin=0.3, end=6),
]
train_cfg = dict(max_epochs=6, val_interval=1)
