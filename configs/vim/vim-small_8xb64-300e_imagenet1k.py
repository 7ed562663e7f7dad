"""Vim-small on ImageNet-1k with its authors' recipe.

To run it on 8 GPUs::

    NAME=vim-small_8xb64-300e_imagenet1k
    bash tools/dist_train.sh configs/vim/$NAME.py 8

Vim's authors report 80.5 % top-1 for their run. We have not run this config
to completion.
"""

_base_ = [
    '../_base_/models/vim_small.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/vim_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(drop_path_rate=0.05))
train_dataloader = dict(batch_size=64, sampler=dict(type='RepeatAugSampler'))

# 1e-3 per 512 images, twice that of Vim-tiny.
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05))
auto_scale_lr = dict(base_batch_size=512)

custom_hooks = [_base_.ema_hook]
