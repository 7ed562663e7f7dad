"""PlainMamba-L3 on ImageNet-1k with its authors' recipe.

To run it on 4 GPUs::

    NAME=plainmamba-l3_4xb256-300e_imagenet1k
    bash tools/dist_train.sh configs/plain_mamba/$NAME.py 4

PlainMamba's authors report 82.3 % top-1 for their run. We have not run this
config to completion.
"""

_base_ = [
    '../_base_/models/pmamba_base.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/plainmamba_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='L3', drop_path_rate=0.4), head=dict(in_channels=448)
)
train_dataloader = dict(batch_size=256)

# 4 GPUs x 256 images.
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 1024 / 512))
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = [_base_.ema_hook]
