"""A Vim on 25 images of each of the 200 classes, 3 epochs.

Run::

    python tools/train.py configs/arena/tiny-imagenet/student_vim.py
"""

_base_ = [
    '../../_base_/models/vim_tiny_d12_ffn4_96.py',
    '../../_base_/datasets/tiny_imagenet_96.py',
    '../../_base_/schedules/arena_adamw_cosine.py',
    '../../_base_/default_runtime.py',
]

# 25 of the 80 images of each class.
train_dataloader = dict(dataset=dict(fraction=0.3125))
