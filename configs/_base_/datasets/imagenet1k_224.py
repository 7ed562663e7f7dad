"""ImageNet-1k in ``data/imagenet``, as mmpretrain expects it.

Either ``train/`` and ``val/`` with one folder per class, or all images in
them and lists in ``meta/``. A share of the training images, balanced over the
classes: ``--cfg-options train_dataloader.dataset.fraction=0.25``.
"""

_base_ = './deit_224.py'

data_preprocessor = dict(num_classes=1000)

train_dataloader = dict(
    dataset=dict(
        dataset=dict(type='ImageNet', data_root='data/imagenet', split='train')
    )
)
val_dataloader = dict(
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='val')
)
test_dataloader = val_dataloader
