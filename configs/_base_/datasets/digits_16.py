"""scikit-learn's digits, 8x8 enlarged to 16x16, 1297 train, 500 test."""

data_preprocessor = dict(
    num_classes=10,
    mean=[78.0, 78.0, 78.0],
    std=[96.0, 96.0, 96.0],
    to_rgb=False,
)

test_pipeline = [
    dict(type='Resize', scale=(16, 16), interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_pipeline = [
    dict(type='RandomCrop', crop_size=8, padding=1),
    *test_pipeline,
]

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='transmamba.FractionDataset',
        fraction=1.0,
        dataset=dict(
            type='transmamba.Digits', split='train', pipeline=train_pipeline
        ),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='transmamba.Digits', split='test', pipeline=test_pipeline
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
