_base_ = [
    '../_base_/models/digits_plain_mamba.py',
    '../_base_/datasets/digits_16.py',
    '../_base_/schedules/digits_adamw_cosine.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(dataset=dict(fraction=0.2))
