_base_ = [
    '../_base_/models/digits_deit.py',
    '../_base_/datasets/digits_16.py',
    '../_base_/schedules/digits_adamw_cosine.py',
    '../_base_/default_runtime.py',
]

max_epochs = 60
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
