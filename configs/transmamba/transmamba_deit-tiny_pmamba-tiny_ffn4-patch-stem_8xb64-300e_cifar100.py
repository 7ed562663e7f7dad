"""Ablation: the student of the paper's text rather than of its Table 1.

The text adds an MLP to each block, the parameter counts of the table leave no
room for one. Here each block has an FFN (ratio 4), and the patch embedding is
the teacher's, so that weight subcloning reaches both; README.md has the
shares. To run it on 8 GPUs, the teacher first::

    NAME=deit-tiny_8xb64-50e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8
    NAME=transmamba_deit-tiny_pmamba-tiny_ffn4-patch-stem_8xb64-300e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

Its baseline is pmamba-tiny_ffn4-patch-stem_8xb64-300e_cifar100.py in
configs/plain_mamba. We know of no number of the paper for either. We have not
run this config to completion.
"""

_base_ = './transmamba_deit-tiny_pmamba-tiny_8xb64-300e_cifar100.py'

model = dict(architecture=dict(backbone=dict(stem='patch', ffn_ratio=4)))
