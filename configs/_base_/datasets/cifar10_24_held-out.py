"""CIFAR-10 with a tenth of the training images held out.

The 45,000 others are what ``train_dataloader.dataset.fraction`` takes its
share of. Settings are chosen on the 5,000 of ``held_out``.
"""

_base_ = './cifar10_24.py'

_split = dict(type='transmamba.FractionDataset', fraction=0.9, seed=0)
_train = _base_.train_dataloader['dataset']['dataset']

train_dataloader = dict(
    dataset=dict(dataset=dict(_delete_=True, **_split, dataset=_train))
)
held_out = dict(
    **_split, rest=True, dataset=dict(_train, pipeline=_base_.test_pipeline)
)
