"""TextVQA's validation set, without OCR tokens; ``textvqa_val``."""

_base_ = './vqa_336.py'

test_pipeline = [
    *_base_.load_square,
    dict(_base_.ask_briefly, capitalize=True),
    _base_.pack_question,
]
test_dataloader = dict(
    dataset=dict(
        type='transmamba.TextVQADataset',
        data_root='data/textvqa/',
        ann_file='TextVQA_0.5.1_val.json',
        data_prefix=dict(img='train_images'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(type='transmamba.VQAAccuracy', prefix='textvqa')
