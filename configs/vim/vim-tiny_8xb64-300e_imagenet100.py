"""The baseline: ViM-T from scratch on ImageNet-100.

To run it on 8 GPUs::

    NAME=vim-tiny_8xb64-300e_imagenet100
    bash tools/dist_train.sh configs/vim/$NAME.py 8

TransMamba (Table 2, one run) reports 76.10 % top-1. We have not run this
config to completion.

The class list of the paper's ImageNet-100 is not known.
"""

_base_ = [
    '../_base_/models/vim_tiny.py',
    '../_base_/datasets/imagenet100_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes=100))
