"""TransMamba, stage two as in the paper: DeiT-B teaches VMamba-T on CIFAR-100.

To run it on 8 GPUs, the teacher first::

    NAME=deit-base_8xb64-50e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8
    NAME=transmamba_deit-base_vmamba-tiny_8xb64-300e_cifar100_paper
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

The paper (Table 2, one run) reports 83.78 % top-1, and 82.88 % for the same
student from scratch. We have not run this config to completion.

The paper does not name the teacher of this student. DeiT-B is the only one as
wide as its last stage; narrower stages keep channels chosen by subcloning.
"""

_base_ = [
    '../_base_/pairs/deit-base_vmamba-tiny.py',
    '../_base_/methods/transmamba_paper.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    architecture=dict(head=dict(num_classes=100)),
    teacher=dict(head=dict(num_classes=100)),
    teacher_ckpt='work_dirs/deit-base_8xb64-50e_cifar100/epoch_50.pth',
    **_base_.transmamba_paper,
)
custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        # What the teacher was fine-tuned from, as in its config.
        reference_ckpt=_base_.teacher_weights,
    )
]
