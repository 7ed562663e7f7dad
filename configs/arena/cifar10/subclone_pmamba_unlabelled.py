"""The same, on images of which not all have labels.

Run after ``teacher_vit.py``::

    python tools/train.py configs/arena/cifar10/subclone_pmamba_unlabelled.py
"""

_base_ = './subclone_pmamba.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='transmamba.PartlyLabelledDataset',
        dataset=_base_.train_dataloader.dataset,
        labelled=0.25,
    )
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
