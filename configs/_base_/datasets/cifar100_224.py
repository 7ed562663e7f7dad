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

_rgb_mean = [123.675, 116.28, 103.53]
_rgb_std = [58.395, 57.12, 57.375]

train_pipeline = [
    dict(
        type='RandomResizedCrop',
        scale=224,
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(
            pad_val=[round(x) for x in _rgb_mean], interpolation='bicubic'
        ),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_rgb_mean,
        fill_std=_rgb_std,
    ),
    dict(type='PackInputs'),
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
        type='transmamba.FractionDataset',
        fraction=1.0,
        dataset=dict(
            type='CIFAR100',
            data_root='data/cifar100',
            split='train',
            download=False,
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='CIFAR100',
        data_root='data/cifar100',
        split='test',
        download=False,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
