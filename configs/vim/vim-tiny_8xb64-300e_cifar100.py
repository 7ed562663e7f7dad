"""The baseline: ViM-T from scratch on CIFAR-100.

To run it on 8 GPUs::

    NAME=vim-tiny_8xb64-300e_cifar100
    bash tools/dist_train.sh configs/vim/$NAME.py 8

TransMamba (Table 2, one run) reports 69.95 % top-1. We have not run this
config to completion.
"""

_base_ = [
    '../_base_/models/vim_tiny.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes=100))
