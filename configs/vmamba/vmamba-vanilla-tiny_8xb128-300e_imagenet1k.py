"""VMamba-T of the first version on ImageNet-1k with its authors' recipe.

To run it on 8 GPUs, in mixed precision as its authors did::

    NAME=vmamba-vanilla-tiny_8xb128-300e_imagenet1k
    bash tools/dist_train.sh configs/vmamba/$NAME.py 8 --amp

VMamba's authors report 82.2 % top-1 for their run. We have not run this
config to completion.

The released weights of this version are no moving average; their file is named
after a drop path rate of 0.1, the released config says 0.2, as here.
"""

_base_ = [
    '../_base_/models/vmamba_vanilla_tiny.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/vmamba_300e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128)
