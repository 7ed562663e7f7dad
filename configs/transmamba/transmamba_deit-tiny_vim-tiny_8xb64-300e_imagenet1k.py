"""TransMamba: DeiT-Ti teaches ViM-T on ImageNet-1k.

To run it on 8 GPUs::

    NAME=transmamba_deit-tiny_vim-tiny_8xb64-300e_imagenet1k
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

The paper reports no figure for it. We have not run this config to
completion.
"""

_base_ = [
    '../_base_/models/deit_tiny.py',
    '../_base_/models/vim_tiny.py',
    '../_base_/distillers/transmamba.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='transmamba.TransMambaDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    # mmpretrain's model zoo: 74.5 % top-1.
    teacher_ckpt=(
        'https://download.openmmlab.com/mmclassification/v0/deit/'
        'deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth'
    ),
    alpha=0.5,
    distiller=_base_.distiller,
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
