"""Ablation: each student layer follows the teacher layer of its own depth.

The paper compares all student layers with the teacher's last one. To run it on
8 GPUs, the teacher first::

    NAME=deit-tiny_8xb64-50e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8
    NAME=transmamba_deit-tiny_pmamba-tiny_uniform-layers_8xb64-300e_cifar100
    bash tools/dist_train.sh configs/transmamba/$NAME.py 8

We know of no number of the paper for it. We have not run this config to
completion.
"""

_base_ = './transmamba_deit-tiny_pmamba-tiny_8xb64-300e_cifar100_paper.py'

_method = _base_.transmamba_paper.distiller.methods[0]
model = dict(distiller=dict(methods=[dict(_method, teacher_layers='uniform')]))
