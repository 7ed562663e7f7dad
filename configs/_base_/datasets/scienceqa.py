"""ScienceQA's test questions with an image; lmms-eval's ``scienceqa_img``.

Pictures are not padded but cropped, as LLaVA does here.
"""

_base_ = './vqa_336.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge',
        scale=336,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=336),
    dict(
        type='transmamba.AskQuestion',
        prompt='{context}{question}\n{choices}\n'
        "Answer with the option's letter from the given choices directly.",
    ),
    _base_.pack_question,
]
test_dataloader = dict(
    dataset=dict(
        type='transmamba.ScienceQADataset',
        data_root='data/scienceqa/',
        ann_file='problems.json',
        split_file='pid_splits.json',
        split='test',
        data_prefix=dict(img='images/test'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(type='transmamba.ChoiceAccuracy', prefix='scienceqa_img')
