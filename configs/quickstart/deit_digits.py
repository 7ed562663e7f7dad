"""The teacher: a small DeiT on all 1,297 training digits.

Run (about one minute on one core)::

    python tools/train.py configs/quickstart/deit_digits.py

Expect about 96 % top-1 with seed 0. The students read
``work_dirs/deit_digits/epoch_60.pth``.
"""

_base_ = [
    '../_base_/models/deit_digits.py',
    '../_base_/datasets/digits_16.py',
    '../_base_/schedules/digits_adamw_cosine.py',
    '../_base_/default_runtime.py',
]

param_scheduler = [dict(_base_.param_scheduler[0], end=60)]
train_cfg = dict(max_epochs=60, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=60))
