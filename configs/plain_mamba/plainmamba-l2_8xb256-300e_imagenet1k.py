"""PlainMamba-L2 on ImageNet-1k with its authors' recipe.

To run it on 8 GPUs::

    NAME=plainmamba-l2_8xb256-300e_imagenet1k
    bash tools/dist_train.sh configs/plain_mamba/$NAME.py 8

PlainMamba's authors report 81.6 % top-1 for their run. We have not run this
config to completion.
"""

_base_ = [
    '../_base_/models/pmamba_small.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/plainmamba_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='L2', drop_path_rate=0.2))
train_dataloader = dict(batch_size=256)

custom_hooks = [_base_.ema_hook]
