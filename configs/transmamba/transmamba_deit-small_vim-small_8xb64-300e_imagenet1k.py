"""TransMamba: DeiT-S teaches ViM-S on ImageNet-1k.

To run it on 8 GPUs::

    NAME=transmamba_deit-small_vim-small_8xb64-300e_imagenet1k
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

Stage two is the default of ``_base_/methods/transmamba.py``; the paper's is in
the config of this name with ``_paper``. We have not run it to completion.
"""

_base_ = [
    '../_base_/pairs/deit-small_vim-small.py',
    '../_base_/methods/transmamba.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/default_runtime.py',
]

model = _base_.transmamba_long
