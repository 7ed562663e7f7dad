"""POPE on COCO, all three categories; lmms-eval's ``pope``."""

_base_ = './vqa_336.py'

test_pipeline = [*_base_.load_square, _base_.ask_briefly, _base_.pack_question]
test_dataloader = dict(
    dataset=dict(
        type='transmamba.POPEDataset',
        data_root='data/pope/',
        ann_file='coco_pope_{category}.json',
        data_prefix=dict(img='val2014'),
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_evaluator = dict(type='transmamba.POPEScore')
