"""GQA, the balanced questions of testdev; lmms-eval's ``gqa``."""

_base_ = './vqa_336.py'

test_pipeline = [*_base_.load_square, _base_.ask_briefly, _base_.pack_question]
test_dataloader = dict(
    dataset=dict(
        type='transmamba.GQADataset',
        data_root='data/gqa/',
        ann_file='testdev_balanced_questions.json',
        data_prefix=dict(img='images'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(type='transmamba.ExactMatch', prefix='gqa')
