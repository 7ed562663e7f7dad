"""Toy questions of ``tools/dataset_converters/make_toy_vqa.py``.

6,000 images of 36 pixels with three questions each to train on, 500 with one
to test on. ``held_out.json`` in place of ``test.json`` has colours of shapes
that the training does not have.
"""

data_preprocessor = dict(mean=[60.0] * 3, std=[60.0] * 3, to_rgb=True)

test_pipeline = [
    dict(
        type='transmamba.EachImage',
        transforms=[dict(type='LoadImageFromFile')],
    ),
    dict(type='transmamba.PackConversation'),
]
train_pipeline = test_pipeline
_data = dict(
    type='transmamba.LLaVAInstructDataset',
    data_root='data/toy_vqa',
    pipeline=test_pipeline,
)

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='transmamba.FractionDataset',
        fraction=1.0,
        dataset=dict(**_data, ann_file='train.json'),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(**_data, ann_file='test.json', test_mode=True),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
)
val_evaluator = dict(type='transmamba.ExactMatch', prefix='vqa')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
