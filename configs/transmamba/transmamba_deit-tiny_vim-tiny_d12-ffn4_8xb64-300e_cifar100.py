"""TransMamba: DeiT-Ti teaches ViM-T as the paper's text describes it.

To run it on 8 GPUs, the teacher first::

    NAME=deit-tiny_8xb64-50e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8
    NAME=transmamba_deit-tiny_vim-tiny_d12-ffn4_8xb64-300e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

Twelve layers with LayerNorm and an FFN, as many as the teacher has, of which
subcloning can copy most. The paper's table has no such student (7.1 M
parameters), so it reports no figure. We have not run this config to
completion.
"""

_base_ = [
    '../_base_/models/deit_tiny.py',
    '../_base_/models/vim_tiny.py',
    '../_base_/distillers/transmamba.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='transmamba.TransMambaDistill',
    architecture=dict(
        _base_.student,
        backbone=dict(_base_.student.backbone, arch='tiny-d12-ffn4'),
        head=dict(_base_.student.head, num_classes=100),
    ),
    teacher=dict(
        _base_.teacher, head=dict(_base_.teacher.head, num_classes=100)
    ),
    teacher_ckpt='work_dirs/deit-tiny_8xb64-50e_cifar100/epoch_50.pth',
    alpha=0.5,
    distiller=_base_.distiller,
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
