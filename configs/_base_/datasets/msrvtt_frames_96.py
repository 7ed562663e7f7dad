"""MSR-VTT as single frames: two a video, 96 pixels, a drawn caption each.

``frames/<video_id>/`` holds images, of as many videos as there are. The
annotations of these are written by::

    python tools/dataset_converters/msrvtt.py data/msrvtt --out data/msrvtt
    python tools/dataset_converters/verify_videos.py \
        data/msrvtt/train_9k.json --videos data/msrvtt/frames \
        --allow-missing --out data/msrvtt/train_9k_frames.json
    python tools/dataset_converters/verify_videos.py \
        data/msrvtt/test_JSFUSION.json --videos data/msrvtt/frames \
        --allow-missing --out data/msrvtt/test_JSFUSION_frames.json

Captions are tokenised as MiniLM wants them.
"""

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)

_frame = [
    dict(
        type='ResizeEdge',
        scale=96,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=96),
]
_rest = [
    dict(type='transmamba.EachFrame', transforms=_frame),
    dict(
        type='transmamba.TokenizeText',
        tokenizer=dict(
            type='transmamba.TransformersTokenizer',
            path='data/weights/all-MiniLM-L6-v2',
        ),
        max_words=32,
    ),
    dict(type='transmamba.PackVideoText'),
]
_frames = dict(type='transmamba.LoadVideo', max_frames=2, fps=None)
train_pipeline = [dict(_frames, random_offset=True), *_rest]
test_pipeline = [_frames, *_rest]

_data = dict(
    type='transmamba.VideoTextDataset',
    data_root='data/msrvtt/',
    data_prefix=dict(video='frames'),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **_data, ann_file='train_9k_frames.json', pipeline=train_pipeline
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **_data,
        ann_file='test_JSFUSION_frames.json',
        test_mode=True,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='transmamba.VideoTextRetrievalMetric')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
