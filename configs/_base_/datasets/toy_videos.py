"""Toy videos of ``tools/dataset_converters/make_toy_videos.py``.

2,000 clips of 12 frames with four captions each to train on, 200 to test on,
32 pixels; 8 frames of each are seen.
"""

data_preprocessor = dict(mean=[60.0] * 3, std=[60.0] * 3)

_root = 'data/toy_videos/'
test_pipeline = [
    dict(type='transmamba.LoadVideo', max_frames=8, fps=None),
    dict(
        type='transmamba.TokenizeText',
        tokenizer=dict(
            type='transmamba.CLIPTokenizer',
            vocabulary=f'{_root}vocabulary.txt',
        ),
        max_words=24,
    ),
    dict(type='transmamba.PackVideoText'),
]
train_pipeline = test_pipeline
_data = dict(
    type='transmamba.VideoTextDataset',
    data_root=_root,
    data_prefix=dict(video='videos'),
)

train_dataloader = dict(
    batch_size=50,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='transmamba.FractionDataset',
        fraction=1.0,
        dataset=dict(**_data, ann_file='train.json', pipeline=train_pipeline),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **_data,
        ann_file='test.json',
        test_mode=True,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='transmamba.VideoTextRetrievalMetric')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
