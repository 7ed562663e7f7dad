"""PlainMamba-L1 on ImageNet-1k with its authors' recipe.

To run it on 8 GPUs, in mixed precision as its authors did::

    NAME=plainmamba-l1_8xb256-300e_imagenet1k
    bash tools/dist_train.sh configs/plain_mamba/$NAME.py 8 --amp

PlainMamba's authors report 77.9 % top-1 for their run. We have not run this
config to completion.
"""

_base_ = [
    '../_base_/models/pmamba_tiny.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/plainmamba_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='L1', drop_path_rate=0.2))
train_dataloader = dict(batch_size=256)

# L1 warms up for 15 epochs, and is not averaged.
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=15),
    dict(_base_.param_scheduler[1], begin=15),
]
