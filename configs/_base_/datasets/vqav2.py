"""VQAv2's test-dev set: the answers go to a file, for the server.

lmms-eval's ``vqav2_test``. The server is EvalAI's challenge 830.
"""

_base_ = './vqa_336.py'

test_pipeline = [*_base_.load_square, _base_.ask_briefly, _base_.pack_question]
test_dataloader = dict(
    dataset=dict(
        type='transmamba.VQAv2Dataset',
        data_root='data/vqav2/',
        ann_file='v2_OpenEnded_mscoco_test-dev2015_questions.json',
        data_prefix=dict(img='test2015'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(
    type='transmamba.AnswersFile',
    out_file='work_dirs/vqav2_test-dev2015_answers.json',
    normalise='vqa',
)
