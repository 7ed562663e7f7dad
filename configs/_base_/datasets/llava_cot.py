"""LLaVA-CoT-100k: answers in four stages; 16 on each of 8 GPUs.

``stages=('CONCLUSION',)`` strips the answers of all but their end.
"""

_base_ = './llava_instruct.py'

train_dataloader = dict(
    dataset=dict(
        type='transmamba.LLaVACoTDataset',
        data_root='data/llava_cot/',
        ann_file='train.jsonl',
        stages=('SUMMARY', 'CAPTION', 'REASONING', 'CONCLUSION'),
    ),
)
