"""DiDeMo, paragraphs: 64 frames of the first 31 seconds, 64 tokens."""

_base_ = './msrvtt_224.py'

_pipeline = [
    dict(
        _base_.train_dataloader.dataset.pipeline[0],
        max_frames=64,
        window=(0, 31),
    ),
    _base_.train_dataloader.dataset.pipeline[1],
    dict(_base_.train_dataloader.dataset.pipeline[2], max_words=64),
    _base_.train_dataloader.dataset.pipeline[3],
]
_data = dict(
    data_root='data/didemo/',
    data_prefix=dict(video='clips'),
    pipeline=_pipeline,
)

train_dataloader = dict(
    batch_size=16, dataset=dict(**_data, ann_file='didemo_train.json')
)
val_dataloader = dict(
    batch_size=16, dataset=dict(**_data, ann_file='didemo_test.json')
)
test_dataloader = val_dataloader
