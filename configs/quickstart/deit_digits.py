_base_ = [
    '../_base_/models/deit_digits.py',
    '../_base_/datasets/digits_16.py',
    '../_base_/schedules/digits_adamw_cosine.py',
    '../_base_/default_runtime.py',
]

model = _base_.teacher

param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=0,
        end=60,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=60))
