"""VizWiz-VQA's validation set, all of it; lmms-eval's ``vizwiz_vqa_val``."""

_base_ = './vqa_336.py'

test_pipeline = [
    *_base_.load_square,
    dict(
        type='transmamba.AskQuestion',
        prompt='{question}\nWhen the provided information is insufficient, '
        "respond with 'Unanswerable'." + _base_.short_answer,
        capitalize=True,
    ),
    _base_.pack_question,
]
test_dataloader = dict(
    dataset=dict(
        type='transmamba.VizWizDataset',
        data_root='data/vizwiz/',
        ann_file='val.json',
        data_prefix=dict(img='val'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(type='transmamba.VQAAccuracy', prefix='vizwiz')
