"""TransMamba: DeiT-Ti teaches PMamba-T on CIFAR-100.

To run it on 8 GPUs, the teacher first::

    NAME=deit-tiny_8xb64-50e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8
    NAME=transmamba_deit-tiny_pmamba-tiny_8xb64-300e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

Stage two is the default of ``_base_/methods/transmamba.py``; the paper's is in
the config of this name with ``_paper``. We have not run it to completion.
"""

_base_ = [
    '../_base_/pairs/deit-tiny_pmamba-tiny.py',
    '../_base_/methods/transmamba.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    architecture=dict(head=dict(num_classes=100)),
    teacher=dict(head=dict(num_classes=100)),
    teacher_ckpt='work_dirs/deit-tiny_8xb64-50e_cifar100/epoch_50.pth',
    **_base_.transmamba_long,
)
