"""A share of Tiny-ImageNet-200, 64 pixels enlarged to 96.

Expects ``data/tiny_imagenet/train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``.
``train_dataloader.dataset.fraction`` is the labelled share, drawn for each
class by ``train_dataloader.dataset.seed``.
"""

_base_ = './cifar10_24.py'

data_preprocessor = dict(
    num_classes=200, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True
)

_enlarge = dict(
    type='Resize',
    scale=(104, 104),
    backend='pillow',
    interpolation='bicubic',
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    _enlarge,
    dict(type='RandomCrop', crop_size=96),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.2, contrast=0.2),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    _enlarge,
    dict(type='CenterCrop', crop_size=96),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(
        dataset=dict(data_root='data/tiny_imagenet', pipeline=train_pipeline)
    )
)
val_dataloader = dict(
    batch_size=100,
    dataset=dict(
        data_root='data/tiny_imagenet',
        data_prefix='val',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
