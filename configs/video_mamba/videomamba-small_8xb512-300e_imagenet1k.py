"""VideoMamba-S on ImageNet-1k with its authors' recipe.

To run it on 8 GPUs, in mixed precision as its authors did::

    NAME=videomamba-small_8xb512-300e_imagenet1k
    bash tools/dist_train.sh configs/video_mamba/$NAME.py 8 --amp

Theirs was bfloat16, ``--cfg-options optim_wrapper.dtype=bfloat16``.
VideoMamba's authors report 81.2 % top-1 for their run. We have not run this
config to completion.
"""

_base_ = [
    '../_base_/models/videomamba_small.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/videomamba_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(drop_path_rate=0.15))
# Unlike VideoMamba-Ti, with repeated augmentation, and not clipped.
train_dataloader = dict(batch_size=512, sampler=dict(type='RepeatAugSampler'))

optim_wrapper = dict(optimizer=dict(weight_decay=0.05), clip_grad=None)
