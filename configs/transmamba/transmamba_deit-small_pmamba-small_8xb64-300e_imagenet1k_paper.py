"""TransMamba of the paper: DeiT-S teaches PMamba-S on ImageNet-1k.

To run it on 8 GPUs::

    NAME=transmamba_deit-small_pmamba-small_8xb64-300e_imagenet1k_paper
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

The paper (Table 2, one run) reports 80.79 % top-1, and 79.79 % for the same
student from scratch. We have not run this config to completion.

The paper's teacher has 81.2 %, the figure of DeiT-S distilled from a CNN; the
teacher used here, trained by mmpretrain without that, has 80.69 % by
mmpretrain's account.
"""

_base_ = [
    '../_base_/pairs/deit-small_pmamba-small.py',
    '../_base_/methods/transmamba_paper.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.transmamba_paper
