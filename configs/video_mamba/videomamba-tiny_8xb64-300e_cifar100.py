"""VideoMamba-Ti from scratch on CIFAR-100.

To run it on 8 GPUs::

    NAME=videomamba-tiny_8xb64-300e_cifar100
    bash tools/dist_train.sh configs/video_mamba/$NAME.py 8

The settings are those of TransMamba's baselines, of which it is none. We have
not run this config to completion.
"""

_base_ = [
    '../_base_/models/videomamba_tiny.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes=100))
