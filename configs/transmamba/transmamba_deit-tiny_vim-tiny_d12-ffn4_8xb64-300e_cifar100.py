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

_base_ = './transmamba_deit-tiny_vim-tiny_8xb64-300e_cifar100.py'

model = dict(architecture=dict(backbone=dict(arch='tiny-d12-ffn4')))
