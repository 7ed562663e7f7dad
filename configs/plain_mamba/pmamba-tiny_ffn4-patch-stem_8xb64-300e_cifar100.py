"""PMamba-T with FFNs and a ViT's patch embedding, from scratch on CIFAR-100.

The baseline of the ablation of the same name in configs/transmamba. To run it
on 8 GPUs::

    NAME=pmamba-tiny_ffn4-patch-stem_8xb64-300e_cifar100
    bash tools/dist_train.sh configs/plain_mamba/$NAME.py 8

We know of no number of the paper for it. We have not run this config to
completion.
"""

_base_ = './pmamba-tiny_8xb64-300e_cifar100.py'

model = dict(backbone=dict(stem='patch', ffn_ratio=4))
