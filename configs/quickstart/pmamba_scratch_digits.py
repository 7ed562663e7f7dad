_base_ = [
    '../_base_/models/pmamba_digits.py',
    '../_base_/datasets/digits_16.py',
    '../_base_/schedules/digits_adamw_cosine.py',
    '../_base_/default_runtime.py',
]

model = _base_.student

default_hooks = dict(distill_monitor=dict(interval=5))

# 20 %: 260 labelled images, 26 of each digit.
train_dataloader = dict(dataset=dict(fraction=0.2))
