"""CIFAR-100 in ``data/cifar100``, enlarged from 32 to 224 pixels.

Expects ``data/cifar100/cifar-100-python``, the unpacked archive of the data
set's authors. Training fails at once where it is missing; to have mmpretrain
download it, add ``--cfg-options
train_dataloader.dataset.dataset.download=True``. A share of the training
images, balanced over the classes: ``--cfg-options
train_dataloader.dataset.fraction=0.25``.

The augmentation is that of deit_224.py. For testing, the whole image is
enlarged, without a crop.
"""

_base_ = './deit_224.py'

# Means and deviations of ImageNet, which the teachers were trained with.
# CIFAR images come as RGB already.
data_preprocessor = dict(num_classes=100, to_rgb=False)

_rgb_mean = _base_.data_preprocessor.mean
_rgb_std = _base_.data_preprocessor.std

# There is no file to load, and the colours are in the other order.
train_pipeline = [
    _base_.train_pipeline[1],
    _base_.train_pipeline[2],
    dict(
        _base_.train_pipeline[3],
        hparams=dict(
            pad_val=[round(x) for x in _rgb_mean], interpolation='bicubic'
        ),
    ),
    dict(_base_.train_pipeline[4], fill_color=_rgb_mean, fill_std=_rgb_std),
    _base_.train_pipeline[5],
]
test_pipeline = [
    dict(
        type='Resize',
        scale=(224, 224),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            type='CIFAR100',
            data_root='data/cifar100',
            split='train',
            download=False,
            pipeline=train_pipeline,
        )
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CIFAR100',
        data_root='data/cifar100',
        split='test',
        download=False,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
