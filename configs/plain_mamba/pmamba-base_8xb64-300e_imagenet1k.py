"""The baseline: PMamba-B from scratch on ImageNet-1k.

To run it on 8 GPUs::

    NAME=pmamba-base_8xb64-300e_imagenet1k
    bash tools/dist_train.sh configs/plain_mamba/$NAME.py 8

The paper (Table 2, one run) reports 80.06 % top-1. We have not run this config
to completion.
"""

_base_ = [
    '../_base_/models/pmamba_base.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]
