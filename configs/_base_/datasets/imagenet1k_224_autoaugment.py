"""ImageNet-1k with AutoAugment in place of RandAugment.

VideoMamba-Ti was trained with timm's ``v0`` policies; mmpretrain has those of
the paper as another project gives them.
"""

_base_ = './imagenet1k_224.py'

train_pipeline = [
    dict(type='AutoAugment', policies='imagenet', hparams=step['hparams'])
    if step['type'] == 'RandAugment'
    else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
