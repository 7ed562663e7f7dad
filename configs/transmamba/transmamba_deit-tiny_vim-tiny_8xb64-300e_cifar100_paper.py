"""TransMamba, stage two as in the paper: DeiT-Ti teaches ViM-T on CIFAR-100.

To run it on 8 GPUs, the teacher first::

    NAME=deit-tiny_8xb64-50e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8
    NAME=transmamba_deit-tiny_vim-tiny_8xb64-300e_cifar100_paper
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

The paper (Table 2, one run) reports 76.56 % top-1, and 69.95 % for the same
student from scratch. We have not run this config to completion.
"""

_base_ = [
    '../_base_/pairs/deit-tiny_vim-tiny.py',
    '../_base_/methods/transmamba_paper.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    architecture=dict(head=dict(num_classes=100)),
    teacher=dict(head=dict(num_classes=100)),
    teacher_ckpt='work_dirs/deit-tiny_8xb64-50e_cifar100/epoch_50.pth',
    **_base_.transmamba_paper,
)
