"""VMamba-T[s1l8] on ImageNet-1k with its authors' recipe.

To run it on 8 GPUs, in mixed precision as its authors did::

    NAME=vmamba-tiny-s1l8_8xb128-300e_imagenet1k
    bash tools/dist_train.sh configs/vmamba/$NAME.py 8 --amp

VMamba's authors report 82.6 % top-1 for their run. We have not run this
config to completion.
"""

_base_ = [
    '../_base_/models/vmamba_tiny.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/vmamba_300e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128)

custom_hooks = [_base_.ema_hook]
