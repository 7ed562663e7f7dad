"""TransMamba: DeiT-S teaches ViM-S on ImageNet-1k.

To run it on 8 GPUs::

    NAME=transmamba_deit-small_vim-small_8xb64-300e_imagenet1k
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

The paper (Table 2, one run) reports 81.01 % top-1, and 80.5 % for the same
student from scratch. We have not run this config to completion.
"""

_base_ = [
    '../_base_/models/deit_small.py',
    '../_base_/models/vim_small.py',
    '../_base_/distillers/transmamba.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='transmamba.TransMambaDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    # mmpretrain's model zoo: 80.69 % top-1.
    teacher_ckpt=(
        'https://download.openmmlab.com/mmclassification/v0/deit/'
        'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
    ),
    alpha=0.5,
    distiller=_base_.distiller,
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
