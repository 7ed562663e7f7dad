"""TransMamba of the paper: DeiT-B teaches PMamba-B on ImageNet-1k.

To run it on 8 GPUs::

    NAME=transmamba_deit-base_pmamba-base_8xb64-300e_imagenet1k_paper
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

The paper (Table 2, one run) reports 81.29 % top-1, and 80.06 % for the same
student from scratch. We have not run this config to completion.

The paper's teacher has 83.4 %, the figure of DeiT-B distilled from a CNN; the
teacher used here, the plain DeiT-B of its authors, has 81.79 % by mmpretrain's
account.
"""

_base_ = [
    '../_base_/pairs/deit-base_pmamba-base.py',
    '../_base_/methods/transmamba_paper.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.transmamba_paper
