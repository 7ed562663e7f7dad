"""TransMamba: DeiT-B teaches VMamba-T on ImageNet-1k.

To run it on 8 GPUs::

    NAME=transmamba_deit-base_vmamba-tiny_8xb64-300e_imagenet1k
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

The paper (Table 2, one run) reports 82.90 % top-1, and 82.20 % for the same
student from scratch. We have not run this config to completion.

The paper does not name the teacher of this student. DeiT-B is the only one as
wide as its last stage; narrower stages keep channels chosen by subcloning.
"""

_base_ = [
    '../_base_/models/deit_base.py',
    '../_base_/models/vmamba_transmamba_tiny.py',
    '../_base_/distillers/transmamba.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='transmamba.TransMambaDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    # mmpretrain's model zoo: 81.79 % top-1.
    teacher_ckpt=(
        'https://download.openmmlab.com/mmclassification/v0/deit/'
        'deit-base_3rdparty_pt-16xb64_in1k_20211124-6f40c188.pth'
    ),
    alpha=0.5,
    distiller=_base_.distiller,
)
custom_hooks = [
    # Nothing to compare the teacher with: it was trained on these images.
    dict(type='transmamba.SubcloneInitializer', importance='activation')
]
