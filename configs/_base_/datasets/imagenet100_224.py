"""ImageNet-100, a folder per class in ``data/imagenet100/{train,val}``.

Neither the paper nor its authors' code says which 100 classes of ImageNet-1k
these are, so no list comes with this config: the folders decide, in
alphabetical order, and must be the same in ``train`` and ``val``. Results on
different lists are not comparable. A share of the training images, balanced
over the classes: ``--cfg-options train_dataloader.dataset.fraction=0.25``.
"""

_base_ = './deit_224.py'

data_preprocessor = dict(num_classes=100)

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            type='CustomDataset',
            data_root='data/imagenet100',
            data_prefix='train',
        )
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CustomDataset', data_root='data/imagenet100', data_prefix='val'
    )
)
test_dataloader = val_dataloader
