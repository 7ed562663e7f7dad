"""VideoMamba-Ti on ImageNet-1k with its authors' recipe.

To run it on 8 GPUs, in mixed precision as its authors did::

    NAME=videomamba-tiny_8xb512-300e_imagenet1k
    bash tools/dist_train.sh configs/video_mamba/$NAME.py 8 --amp

Theirs was bfloat16, ``--cfg-options optim_wrapper.dtype=bfloat16``.
VideoMamba's authors report 76.9 % top-1 for their run. We have not run this
config to completion.
"""

_base_ = [
    '../_base_/models/videomamba_tiny.py',
    '../_base_/datasets/imagenet1k_224_autoaugment.py',
    '../_base_/schedules/videomamba_300e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=512)
