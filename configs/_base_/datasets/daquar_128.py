"""DAQUAR: photos of rooms at 128 pixels, in LLaVA's format.

794 images with 6,795 questions to train on, a conversation each; 1,021 of the
5,673 questions about 653 others to test on. Written by::

    python tools/dataset_converters/daquar.py data/daquar
"""

# As timm's ViTs want them.
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)

test_pipeline = [
    dict(
        type='transmamba.EachImage',
        transforms=[
            dict(type='LoadImageFromFile'),
            dict(
                type='Resize',
                scale=(128, 128),
                backend='pillow',
                interpolation='bicubic',
            ),
        ],
    ),
    dict(type='transmamba.PackConversation'),
]
train_pipeline = test_pipeline
_data = dict(
    type='transmamba.LLaVAInstructDataset',
    data_root='data/daquar',
    pipeline=test_pipeline,
)

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(**_data, ann_file='train.json'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='transmamba.FractionDataset',
        fraction=0.18,
        dataset=dict(**_data, ann_file='test.json', test_mode=True),
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
)
val_evaluator = dict(type='transmamba.ExactMatch', prefix='vqa')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
