"""MSR-VTT, 9k split, tested on 1k-A: CLIP4Clip's frames, a caption a sample.

Twelve frames of one a second; an epoch has each of the 180,000 captions once.
"""

data_preprocessor = dict(
    mean=[122.771, 116.746, 104.094], std=[68.5, 66.632, 70.323]
)

_frame = [
    dict(
        type='ResizeEdge',
        scale=224,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=224),
]
test_pipeline = [
    dict(type='transmamba.LoadVideo', max_frames=12, fps=1.0, window=None),
    dict(type='transmamba.EachFrame', transforms=_frame),
    dict(
        type='transmamba.TokenizeText',
        tokenizer=dict(type='transmamba.CLIPTokenizer'),
        max_words=32,
    ),
    dict(type='transmamba.PackVideoText'),
]
train_pipeline = test_pipeline

_data = dict(
    type='transmamba.VideoTextDataset',
    data_root='data/msrvtt/',
    data_prefix=dict(video='videos'),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        **_data,
        ann_file='train_9k.json',
        captions='each',
        pipeline=train_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        **_data,
        ann_file='test_JSFUSION.json',
        test_mode=True,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='transmamba.VideoTextRetrievalMetric')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
