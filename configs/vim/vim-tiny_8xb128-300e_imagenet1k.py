"""Vim-tiny on ImageNet-1k with its authors' recipe.

To run it on 8 GPUs::

    NAME=vim-tiny_8xb128-300e_imagenet1k
    bash tools/dist_train.sh configs/vim/$NAME.py 8

Vim's authors report 76.1 % top-1 for their run. We have not run this config
to completion.
"""

_base_ = [
    '../_base_/models/vim_tiny.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/vim_300e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128, sampler=dict(type='RepeatAugSampler'))

custom_hooks = [_base_.ema_hook]
