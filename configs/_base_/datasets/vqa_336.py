"""A picture of 336 pixels and a question, as LLaVA-1.5 and lmms-eval ask.

What the benchmarks share: pictures are padded to squares of CLIP's mean
colour, and answers are to be short. The model, and the data_preprocessor that
goes with it, are another base of a config.
"""

load_square = [
    dict(type='LoadImageFromFile'),
    dict(type='transmamba.PadToSquare'),
    dict(
        type='Resize',
        scale=(336, 336),
        backend='pillow',
        interpolation='bicubic',
    ),
]
short_answer = '\nAnswer the question using a single word or phrase.'
ask_briefly = dict(
    type='transmamba.AskQuestion', prompt='{question}' + short_answer
)
pack_question = dict(
    type='PackInputs',
    algorithm_keys=('question', 'gt_answer'),
    meta_keys=('question_id', 'category', 'img_path'),
)

test_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_cfg = dict()
