"""MME, all 14 categories; lmms-eval's ``mme``."""

_base_ = './vqa_336.py'

test_pipeline = [
    *_base_.load_square,
    dict(_base_.ask_briefly, remove=' Please answer yes or no.'),
    _base_.pack_question,
]
test_dataloader = dict(
    dataset=dict(
        type='transmamba.MMEDataset',
        data_prefix=dict(img='data/mme/MME_Benchmark_release_version'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(type='transmamba.MMEScore')
