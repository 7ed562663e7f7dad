"""TransMamba: DeiT-B teaches VMamba-T on ImageNet-1k.

To run it on 8 GPUs::

    NAME=transmamba_deit-base_vmamba-tiny_8xb64-300e_imagenet1k
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

Stage two is the default of ``_base_/methods/transmamba.py``; the paper's is in
the config of this name with ``_paper``. We have not run it to completion.

The paper does not name the teacher of this student. DeiT-B is the only one as
wide as its last stage; narrower stages keep channels chosen by subcloning.
"""

_base_ = [
    '../_base_/pairs/deit-base_vmamba-tiny.py',
    '../_base_/methods/transmamba.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.transmamba_long
custom_hooks = [
    # Nothing to compare the teacher with: it was trained on these images.
    dict(type='transmamba.SubcloneInitializer', importance='activation')
]
