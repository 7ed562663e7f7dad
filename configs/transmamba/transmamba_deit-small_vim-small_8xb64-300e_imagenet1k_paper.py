"""TransMamba, stage two as in the paper: DeiT-S teaches ViM-S on ImageNet-1k.

To run it on 8 GPUs::

    NAME=transmamba_deit-small_vim-small_8xb64-300e_imagenet1k_paper
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

The paper (Table 2, one run) reports 81.01 % top-1, and 80.5 % for the same
student from scratch. We have not run this config to completion.
"""

_base_ = [
    '../_base_/pairs/deit-small_vim-small.py',
    '../_base_/methods/transmamba_paper.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.transmamba_paper
