"""DiDeMo, paragraphs: 64 frames of the first 31 seconds, 64 tokens."""

_base_ = './msrvtt_224.py'

_load, _frames, _tokens, _pack = _base_.test_pipeline
test_pipeline = [
    dict(_load, max_frames=64, window=(0, 31)),
    _frames,
    dict(_tokens, max_words=64),
    _pack,
]
train_pipeline = test_pipeline

_data = dict(data_root='data/didemo/', data_prefix=dict(video='clips'))
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        **_data, ann_file='didemo_train.json', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=16,
    dataset=dict(**_data, ann_file='didemo_test.json', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
